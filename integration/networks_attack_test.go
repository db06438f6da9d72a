package integration

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

// macOf is the address of a link.
func macOf(t testing.TB, n *Node, link string) net.HardwareAddr {
	t.Helper()
	_, mac, _ := strings.Cut(n.Exec("ip", "-o", "link", "show", "dev", link), "link/ether ")
	hw, err := net.ParseMAC(strings.Fields(mac)[0])
	if err != nil {
		t.Fatal(err)
	}
	return hw
}

// TestAttackAnotherNetwork has no unnamed network, a host in red and blue, and one in each alone. The tenant of red sends what should
// get into blue, and cannot; the same from a host of blue gets there, so that it is an attack.
func TestAttackAnotherNetwork(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	lab.NewEtcd(wire)
	lab.StartEtcd()
	hosts := lab.NewHosts(wire, 3)
	for _, n := range []string{"red 10.30.0.0/16", "blue 10.20.0.0/16"} { // VNIs 1 and 2
		hosts[0].Overlayctl(append([]string{"network", "create"}, strings.Fields(n)...)...)
	}
	for i, networks := range []string{"all", "red", "blue"} {
		hosts[i].Sysctl("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
		hosts[i].Start("--networks="+networks, "--fast-path=off")
	}
	for i, h := range hosts {
		h.WaitReady()
		if i != 2 {
			h.WaitNetwork("red", "10.30.0.0/16", 1)
		}
		if i != 1 {
			h.WaitNetwork("blue", "10.20.0.0/16", 1)
		}
	}
	both, tenant, peer := hosts[0], hosts[1], hosts[2]
	victim, atTenant, atPeer := both.NewContainerIn("blue"), tenant.NewContainerIn("red"), peer.NewContainerIn("blue")
	red := both.NewContainerIn("red")
	reach(t, victim, atPeer, 1450)
	reach(t, red, atTenant, 1450)
	apart(t, victim, red)
	apart(t, victim, atTenant)
	apart(t, atPeer, atTenant)

	s := &attacked{t: t, a: both, b: peer, in: victim, on: atPeer, vtep: netip.MustParseAddr("10.20.0.1")}
	ofPeer, ofTenant := near(atPeer.Addrs[0], 9), near(atTenant.Addrs[0], 9)
	into := func(from *Node, vni byte, link string, src netip.Addr) func() bool {
		return func() bool {
			return s.hears(victim.Node, func(port int) {
				sendVXLAN(t, from, both.Addrs[0], vni, ethernet(macOf(t, both.Node, link), packet(src, victim.Addrs[0], port, 8)))
			})
		}
	}
	for _, c := range []struct {
		name  string
		try   func() bool
		opens bool
	}{
		{"a peer of blue, by blue's VNI", into(peer.Node, 2, "overlay.2", ofPeer), true},
		{"the tenant of red, by blue's VNI, as blue's", into(tenant.Node, 2, "overlay.2", ofPeer), false},
		{"the tenant of red, by blue's VNI, as itself", into(tenant.Node, 2, "overlay.2", ofTenant), false},
		{"the tenant of red, by red's VNI, as blue's", into(tenant.Node, 1, "overlay.1", ofPeer), false},
		{"the tenant of red, by red's VNI, as itself", into(tenant.Node, 1, "overlay.1", ofTenant), false},
		{"the peer of blue, by red's VNI, as red's", into(peer.Node, 1, "overlay.1", ofTenant), false},
		{"the tenant of red, by an unknown VNI", into(tenant.Node, 7, "overlay.2", ofPeer), false},
		{"a container of red at the tenant, by blue's VNI", into(atTenant.Node, 2, "overlay.2", ofPeer), false},
		{"a container of red on the same host, by its gateway", func() bool {
			return s.hears(victim.Node, func(port int) { s.raw(red.Node, victim.Addrs[0], packet(red.Addrs[0], victim.Addrs[0], port, 8)) })
		}, false},
		{"the same as one of blue", func() bool {
			return s.hears(victim.Node, func(port int) { s.raw(red.Node, victim.Addrs[0], packet(ofPeer, victim.Addrs[0], port, 8)) })
		}, false},
		{"the tenant by a route through the host", func() bool {
			tenant.Exec("ip", "route", "replace", victim.Addrs[0].String(), "via", both.Addrs[0].String())
			defer tenant.Exec("ip", "route", "del", victim.Addrs[0].String())
			return s.hears(victim.Node, func(port int) { s.raw(tenant.Node, victim.Addrs[0], packet(ofTenant, victim.Addrs[0], port, 8)) })
		}, false},
		{"a peer of blue, still", into(peer.Node, 2, "overlay.2", ofPeer), true},
	} {
		if got := c.try(); got != c.opens {
			t.Errorf("%s: gets through: %t", c.name, got)
		}
	}
	// With a host that joins blue as well the same is no attack any more.
	tenant.Daemon.Kill()
	tenant.Start("--networks=all", "--fast-path=off")
	tenant.WaitReady()
	tenant.WaitNetwork("blue", "10.20.0.0/16", 2)
	both.WaitNetwork("blue", "10.20.0.0/16", 2)
	reach(t, tenant.NewContainerIn("blue"), victim, 1450)
	apart(t, atTenant, victim)
}
