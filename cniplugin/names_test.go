package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// TestNameservers has the container ask its gateways as long as overlayd answers there, and the configuration names nobody else.
func TestNameservers(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	nameservers := func(id string, more map[string]any) []string {
		t.Helper()
		r := request{id: id, ifName: "eth0", netns: h.addNamespace(t, id), more: more}
		_, text := h.mustAdd(t, r)
		var result types100.Result
		if err := json.Unmarshal(text, &result); err != nil {
			t.Fatal(err)
		}
		return result.DNS.Nameservers
	}
	if got := nameservers("off", nil); len(got) > 0 {
		t.Errorf("without names: %v", got)
	}
	if err := os.WriteFile(filepath.Join(h.dir, resolvConf), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		what string
		more map[string]any
		want []string
	}{
		{"names", nil, []string{"10.5.72.1", "fc00:7:0:4c::1"}},
		{"search alone", map[string]any{"dns": map[string]any{"search": []string{"overlay"}}}, []string{"10.5.72.1", "fc00:7:0:4c::1"}},
		{"its own", map[string]any{"dns": map[string]any{"nameservers": []string{"192.0.2.53"}}}, []string{"192.0.2.53"}},
		{"no gateway", map[string]any{"delegate": map[string]any{"type": "bridge", "isGateway": false}}, nil},
	} {
		if got := nameservers("c"+string(rune('0'+i)), c.more); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}
