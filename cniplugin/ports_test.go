package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// The kernel gives a bridge 1,023 ports. The next container is refused for that reason, and leaves nothing.
func TestBridgeIsFull(t *testing.T) {
	t.Parallel()
	h := newHost(t, strings.Replace(v4Lease, "/24", "/21", 1))
	script := "link add cni0 type bridge\n"
	for i := range 1023 {
		script += fmt.Sprintf("link add p%d type vxlan id %[1]d dstport 4789\nlink set p%[1]d master cni0\n", i)
	}
	batch := exec.Command("ip", "-n", strings.TrimPrefix(h.ns, "/run/netns/"), "-batch", "-")
	batch.Stdin = strings.NewReader(script)
	if out, err := batch.CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
	for _, delegate := range []map[string]any{{}, {"type": "bridge"}} {
		_, _, err := h.add(request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, fmt.Sprint(len(delegate))),
			more: map[string]any{"delegate": delegate}})
		wantError(t, err, types.ErrTryAgainLater, "exchange full: the bridge has the 1,023 ports that the kernel allows")
		h.wantClean(t)
	}
}
