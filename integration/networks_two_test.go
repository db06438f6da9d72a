package integration

import (
	"strings"
	"testing"
)

// TestContainerInTwoNetworks attaches a container twice: by its first network's default route it reaches the world, by the second that
// network alone. It is nobody's way from one to the other. What it gives up of one stays of the other.
func TestContainerInTwoNetworks(t *testing.T) {
	t.Parallel()
	_, _, hosts := severalNetworks(t, 2, "blue 10.20.0.0/16")
	startAll(t, hosts, "--networks=blue")
	for _, h := range hosts {
		h.WaitNetwork("blue", "10.20.0.0/16", 1)
	}
	plain, blue := hosts[1].NewContainer(), hosts[1].NewContainerIn("blue")
	both := hosts[0].NewContainer()
	first := both.Addrs
	hosts[0].SetNetwork("blue")
	second := &Container{Node: both.Node, Host: hosts[0], conf: "blue", ifName: "eth1"}
	second.Attach()
	if !strings.HasPrefix(second.Addrs[0].String(), "10.20.") {
		t.Fatalf("the second address is %v", second.Addrs)
	}
	if out := both.Exec("ip", "route", "show", "default"); strings.Count(out, "default") != 1 || !strings.Contains(out, "eth0") {
		t.Errorf("default routes: %s", out)
	}
	both.Addrs = first
	reach(t, both, plain, 1450)
	reach(t, second, blue, 1450)
	reach(t, plain, both, 1450)
	reach(t, blue, second, 1450)
	apart(t, plain, blue)
	// Through a container that is in both and routes, nobody gets with an address that is not its own.
	both.Sysctl("net.ipv4.ip_forward=1")
	neighbour := hosts[0].NewContainer()
	neighbour.Exec("ip", "route", "replace", "10.20.0.0/16", "via", first[0].String())
	if neighbour.reaches(second) && neighbour.reaches(blue) {
		t.Error("a container of the unnamed network gets to blue through one that is in both")
	}
	second.Detach()
	if out := both.Exec("ip", "-o", "link"); strings.Contains(out, "eth1") || !strings.Contains(out, "eth0") {
		t.Errorf("after the second is detached: %s", out)
	}
	reach(t, both, plain, 1450)
}
