package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/cniplugin/attachment"
)

func TestStranded(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to tell network namespaces apart")
	}
	const here = "/proc/self/ns/net"
	id, err := attachment.NetnsID(here)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"overlay","subnetFile":%q,"dataDir":%q}]}`,
		dir+"/run/subnet.env", dir+"/data")
	if err := os.WriteFile(filepath.Join(dir, "10.conflist"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := attachment.Create(t.Context(), dir+"/data", attachment.Shared, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []attachment.Attachment{
		{ContainerID: "now", NetnsID: id, HostIfIndex: 6, Guard: attachment.Bridged, Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.72.1/24")}},
		{ContainerID: "gone", NetnsID: "before the reboot", Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.9.1/24")}},
		{ContainerID: "macvlan", NetnsID: id, Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.72.1/24")}},
		{ContainerID: "former", NetnsID: id, HostIfIndex: 7, Labels: map[string]string{"K8S_POD_NAME": "web"}, Subnets: []netip.Prefix{
			netip.MustParsePrefix("10.5.9.1/24"), netip.MustParsePrefix("fc00:7:0:9::1/64"),
		}},
	} {
		a.Version, a.Network, a.IfName, a.Netns, a.Delegate = attachment.Version, "net", "eth0", here, json.RawMessage(`{"type":"bridge"}`)
		if err := store.Save(a); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}

	a := &app{settings: settings.Client{RunDir: dir + "/run"}}
	dirs := &cniDirs{conf: dir}
	status := api.Status{Subnets: []string{"10.5.72.0/24", "fc00:7:0:9::/64"}}
	find := func(a *app, s api.Status) []stranded {
		living, err := a.living(t.Context(), dirs)
		if err != nil {
			t.Fatal(err)
		}
		return findStranded(living, s)
	}
	got := find(a, status)
	want := []stranded{{"former", "eth0", []string{"10.5.9.0/24"}, map[string]string{"K8S_POD_NAME": "web"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	const line = "container former, eth0, has an address of 10.5.9.0/24, K8S_POD_NAME=web: restart it"
	if got[0].String() != line {
		t.Errorf("%s", got[0])
	}

	living, err := a.living(t.Context(), dirs)
	for part, want := range map[string]int{"containers": 1, "tunnel": 0} {
		if n := countUnguarded(living, api.Status{Guard: api.Guard{Parts: []string{part}}}); n != want || err != nil {
			t.Errorf("with a guard of the %s: %d containers, %v, want %d", part, n, err, want)
		}
	}

	for name, other := range map[string]struct {
		app    *app
		status api.Status
	}{
		"no lease yet":       {a, api.Status{}},
		"another daemon's":   {&app{settings: settings.Client{RunDir: "/elsewhere"}}, status},
		"all of the present": {a, api.Status{Subnets: []string{"10.5.72.1/24", "10.5.9.1/24", "fc00:7:0:9::1/64"}}},
	} {
		if got := find(other.app, other.status); len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Only while there are policies, and only those that go round them.
func TestCountUnpoliced(t *testing.T) {
	t.Parallel()
	var living []attachment.Attachment
	for _, delegate := range []string{
		`{"type":"macvlan"}`, `{"type":"bridge","vlan":7}`, `{"type":"bridge"}`, `{"type":"ptp"}`, `{"type":"theirs"}`,
		`{"type":"bridge","vlanTrunk":[{"id":8}]}`, `{"type":"host-device"}`,
	} {
		living = append(living, attachment.Attachment{Delegate: []byte(delegate)})
	}
	var s api.Status
	if n := countUnpoliced(living, s); n != 0 {
		t.Errorf("%d without policies", n)
	}
	s.Policy.Enforcing = true
	if n := countUnpoliced(living, s); n != 3 {
		t.Errorf("%d, want 3", n)
	}
}
