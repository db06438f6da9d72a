package integration

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// guardAttacks are by their names; each tells whether it did what it is for.
var guardAttacks = []struct {
	name   string
	family int  // 4 or 6; 0: both
	closed bool // in an IPv4 network also without the guard, by how links are made
	try    func(s *attacked) bool
}{
	{name: "vxlan-from-a-stranger", try: func(s *attacked) bool { return s.inner(s.stranger, s.a.Addrs[0], s.peers(9)) }},
	{name: "vxlan-in-fragments", try: func(s *attacked) bool {
		s.stranger.Exec("ip", "link", "set", "eth0", "mtu", "1280")
		defer s.stranger.Exec("ip", "link", "set", "eth0", "mtu", "1500")
		return s.hears(s.in.Node, func(port int) {
			s.tunnel(s.stranger, s.a.Addrs[0], ethernet(s.mac, packet(s.peers(9), s.in.Addrs[0], port, 1370)))
		})
	}},
	{name: "vxlan-by-loopback", try: func(s *attacked) bool { return s.inner(s.a.Node, s.either("127.0.0.1", "::1"), s.peers(9)) }},
	{name: "vxlan-to-the-host-itself", try: func(s *attacked) bool { return s.inner(s.a.Node, s.a.Addrs[0], s.peers(9)) }},
	{name: "vxlan-from-a-container-to-its-host", try: func(s *attacked) bool { return s.inner(s.in.Node, s.in.Gateways[0], s.peers(9)) }},
	{name: "vxlan-from-a-container-masqueraded", try: func(s *attacked) bool { return s.inner(s.on.Node, s.a.Addrs[0], s.peers(9)) }},
	{name: "vxlan-from-another-network-masqueraded", try: func(s *attacked) bool { return s.inner(s.docker, s.a.Addrs[0], s.peers(9)) }},
	{name: "vxlan-in-vxlan", try: func(s *attacked) bool { return s.inner(s.on.Node, s.vtep, s.peers(9)) }},
	{name: "inner-source-of-the-own-subnet", try: func(s *attacked) bool { return s.inner(s.b.Node, s.a.Addrs[0], s.own(99)) }},
	{name: "inner-source-outside-the-network", try: func(s *attacked) bool { return s.inner(s.b.Node, s.a.Addrs[0], s.outside()) }},
	{name: "inner-broadcast-frame", try: func(s *attacked) bool {
		all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		return s.hears(s.a.Node, func(port int) { s.tunnel(s.b.Node, s.a.Addrs[0], ethernet(all, packet(s.peers(9), s.vtep, port, 8))) })
	}},
	{name: "inner-packet-to-a-group", try: func(s *attacked) bool {
		group := s.either("224.0.0.1", "ff02::1")
		return s.hears(s.a.Node, func(port int) { s.tunnel(s.b.Node, s.a.Addrs[0], ethernet(s.mac, packet(s.peers(9), group, port, 8))) })
	}},
	{name: "router-advertisement", try: func(s *attacked) bool {
		s.a.Sysctl("net.ipv6.conf." + strings.ReplaceAll(s.link, ".", "/") + ".accept_ra=2") // somebody wants to hear routers
		for range 3 {
			s.tunnel(s.b.Node, s.a.Addrs[0], advertisement())
		}
		time.Sleep(200 * time.Millisecond)
		return strings.Contains(s.a.Exec("ip", "-6", "route", "show", "default"), "proto ra")
	}, closed: true},
	{name: "ARP-flood", family: 4, try: func(s *attacked) bool {
		for i := range 250 {
			s.tunnel(s.b.Node, s.a.Addrs[0], question(s.mac, s.peers(i), s.vtep))
		}
		return s.neighbours() > 20
	}, closed: true},
	{name: "ND-flood", family: 6, try: func(s *attacked) bool {
		for i := range 250 {
			s.tunnel(s.b.Node, s.a.Addrs[0], solicitation(s.mac, s.peers(i), s.vtep))
		}
		return s.neighbours() > 20
	}},
	{name: "IPv6-into-an-IPv4-network", family: 4, try: func(s *attacked) bool {
		var c net.PacketConn
		if err := s.a.Do(func() (err error) { c, err = net.ListenPacket("udp6", "[::]:0"); return err }); err != nil {
			s.t.Fatal(err)
		}
		defer c.Close()
		port := c.LocalAddr().(*net.UDPAddr).Port
		group, mac := netip.MustParseAddr("ff02::1"), net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
		s.tunnel(s.b.Node, s.a.Addrs[0], ethernet(mac, packet(netip.MustParseAddr("fe80::66"), group, port, 8)))
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, _, err := c.ReadFrom(make([]byte, 64))
		return err == nil
	}, closed: true},
	{name: "container-as-another-host's", try: func(s *attacked) bool {
		return s.hears(s.b.Node, func(port int) { s.raw(s.on.Node, s.on.Gateways[0], packet(s.own(99), s.on.Gateways[0], port, 8)) })
	}},
	{name: "container-as-outside-the-network", try: func(s *attacked) bool {
		return s.hears(s.in.Node, func(port int) { s.raw(s.on.Node, s.in.Addrs[0], packet(s.outside(), s.in.Addrs[0], port, 8)) })
	}},
	{name: "peer's-source-by-the-underlay", try: func(s *attacked) bool { return s.byUnderlay(s.peers(9)) }},
	{name: "own-source-by-the-underlay", try: func(s *attacked) bool { return s.byUnderlay(s.own(99)) }},
}

// byUnderlay has the stranger send a packet to the victim's container without a tunnel.
func (s *attacked) byUnderlay(src netip.Addr) bool {
	s.t.Helper()
	s.stranger.Exec("ip", "route", "replace", s.in.Addrs[0].String(), "via", s.a.Addrs[0].String())
	return s.hears(s.in.Node, func(port int) { s.raw(s.stranger, s.in.Addrs[0], packet(src, s.in.Addrs[0], port, 8)) })
}

// Where nothing is masqueraded, containers reach other hosts' own addresses as themselves, and are answered.
func TestGuardWithoutMasquerading(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts)
	c := hosts[0].NewContainer()
	for i, ip := range hosts[1].Addrs {
		eventually(t, fmt.Sprintf("a container reaches %s", ip), func() error { return c.PingSize(ip, 100) })
		if seen, err := c.Transfer(hosts[1].Node, ip, 1<<20); err != nil || seen != c.Addrs[i] {
			t.Errorf("transfer to %s: seen as %s, %v", ip, seen, err)
		}
	}
}

// What nobody of the overlay sends is kept out by the guard. Where it is off, the same packets do what they are for: so they
// are attacks. What the network is for goes on.
func TestAttackGuard(t *testing.T) {
	t.Parallel()
	for _, family := range []int{4, 6} {
		t.Run(map[int]string{4: "IPv4", 6: "IPv6"}[family], func(t *testing.T) {
			t.Parallel()
			stack := Stack{V4: family == 4, V6: family == 6}
			open, guarded := underAttack(t, stack, "--guard="), underAttack(t, stack)
			for _, attack := range guardAttacks {
				if attack.family != 0 && attack.family != family {
					continue
				}
				t.Run(attack.name, func(t *testing.T) {
					if !(attack.closed && family == 4) && !attack.try(open) {
						t.Error("it is none: it does nothing without the guard either")
					}
					if attack.try(guarded) {
						t.Error("it succeeds")
					}
				})
			}
			reach(t, guarded.in, guarded.on, guarded.mtu())
			reach(t, guarded.on, guarded.in, guarded.mtu())
			t.Run("counted", func(t *testing.T) {
				status, body, err := guarded.a.Get("http://127.0.0.1:9417/metrics")
				for _, reason := range []string{"stranger", "source", "frame", "forged"} {
					if want := `overlayd_guard_dropped_packets_total{reason="` + reason + `"}`; err != nil || status != 200 || !strings.Contains(body, want) || strings.Contains(body, want+" 0\n") {
						t.Errorf("metrics have not counted %s: status %d, %v", reason, status, err)
					}
				}
			})
		})
	}
}
