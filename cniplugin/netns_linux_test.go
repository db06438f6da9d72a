package main

import (
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// A path that a new namespace has taken over leads to somebody else's eth0.
func TestNamespaceReplaced(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	h.mustAdd(t, r)
	name := filepath.Base(r.netns)
	mustRun(t, "ip", "netns", "del", name)
	mustRun(t, "ip", "netns", "add", name)
	ip(t, name, "link", "add", "eth0", "type", "veth", "peer", "other")
	h.mustCall(t, r.del())
	ip(t, name, "link", "show", "eth0")
	h.wantClean(t)
}

func TestHostNamespaceRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	ip(t, h.ns, "link", "add", "eth0", "type", "veth", "peer", "underlay")
	_, err := h.call(request{command: "ADD", id: "c1", ifName: "eth0", netns: h.ns})
	wantError(t, err, types.ErrInvalidNetNS, "is the host's own network namespace")
	ip(t, h.ns, "link", "show", "eth0")
}

func TestNetnsID(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	seen := map[string]bool{}
	for range 20 { // the kernel gives the inode of the last one again
		mustRun(t, "ip", "netns", "del", filepath.Base(h.ns))
		mustRun(t, "ip", "netns", "add", filepath.Base(h.ns))
		id, err := attachment.NetnsID(h.ns)
		if again, _ := attachment.NetnsID(h.ns); err != nil || again != id || seen[id] {
			t.Fatalf("%v: %s, then %s; had before: %v", err, id, again, seen)
		}
		seen[id] = true
	}
	for _, path := range []string{"/nowhere", "/dev/null", h.dir} {
		if id, err := attachment.NetnsID(path); err == nil {
			t.Errorf("%s is %s", path, id)
		}
	}
}
