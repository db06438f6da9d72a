package integration

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sendVXLAN has a node send a frame by vxlan of a VNI.
func sendVXLAN(t *testing.T, from *Node, to netip.Addr, vni byte, frame []byte) {
	t.Helper()
	err := from.Do(func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(to, vxlanPort).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(append([]byte{8, 0, 0, 0, 0, 0, vni, 0}, frame...))
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPERM) {
			err = nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A host that is in one network alone, and containers of it, send nothing into another's VNI, though both are at one port; nor does who
// is in both with addresses of the other.
func TestSendsIntoAnotherNetwork(t *testing.T) {
	t.Parallel()
	l, s := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	l.putNetwork("blue", vxlanOf(blueV4, 7))
	hosts := l.NewHosts(s, 3)
	a, b, c := hosts[0], hosts[1], hosts[2]
	for _, h := range hosts {
		h.Sysctl("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
	}
	a.Start("--networks=blue", "--ip-masq")
	b.Start("--networks=blue", "--ip-masq")
	c.Start("--ip-masq")
	for _, h := range hosts {
		h.WaitReady()
		h.WaitPeers(2)
	}
	a.waitNamed("blue", 1)
	b.waitNamed("blue", 1)
	inside := b.NewContainer() // of the unnamed network
	plain := a.NewContainer()
	a.in("blue")
	b.in("blue")
	victim, peer := a.NewContainer(), b.NewContainer()
	wantReach(t, []*Container{victim}, []*Container{peer}, true, false)
	_, text, _ := strings.Cut(a.Exec("ip", "-o", "link", "show", "dev", "overlay.7"), "link/ether ")
	mac, err := net.ParseMAC(strings.Fields(text)[0])
	if err != nil {
		t.Fatal(err)
	}
	attack := &attacked{t: t}
	into := func(from *Node, vni byte, source netip.Addr, to *Container) bool {
		return attack.hears(to.Node, func(port int) {
			sendVXLAN(t, from, a.Addrs[0], vni, ethernet(mac, packet(source, to.Addrs[0], port, 8)))
		})
	}
	blue, unnamed := near(peer.Addrs[0], 99), near(inside.Addrs[0], 99)
	if !into(b.Node, 7, blue, victim) || !into(b.Node, 1, unnamed, plain) {
		t.Fatal("what peers themselves send does not come: nothing is tried here")
	}
	for what, got := range map[string]bool{
		"a host of the unnamed network alone, into blue":         into(c.Node, 7, blue, victim),
		"a container of the unnamed network, into blue":          into(inside.Node, 7, blue, victim),
		"a container of blue, into the unnamed network":          into(peer.Node, 1, unnamed, plain),
		"a host of both, into blue with an address of the other": into(b.Node, 7, unnamed, victim),
		"a host of both, by the other network into blue":         into(b.Node, 1, unnamed, victim),
		"the same with an address of blue":                       into(b.Node, 1, blue, victim),
		"a host of both, by blue into the unnamed network":       into(b.Node, 7, blue, plain),
	} {
		if got {
			t.Errorf("%s: it came", what)
		}
	}
	a.Daemon.Stop(unix.SIGTERM)
	a.Start("--networks=blue", "--ip-masq", "--guard=")
	a.WaitReady()
	a.waitNamed("blue", 1)
	if !into(c.Node, 7, blue, victim) {
		t.Error("without the guard it does not come either: the test tries nothing")
	}
	if into(b.Node, 7, blue, plain) || into(b.Node, 1, unnamed, victim) {
		t.Error("without the guard networks are not apart")
	}
}
