package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// TestAttackFromContainer forges all that a container can forge towards another one on its bridge, and the host.
func TestAttackFromContainer(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	nd := func(src, dst string, typ byte, rest ...[]byte) []byte {
		return ipv6(src, dst, 58, icmpv6(src, dst, typ, join(append(rest, option(14, []byte(mark)))...)))
	}
	flags := []byte{0x20, 0, 0, 0} // override
	for _, tt := range []struct {
		name, reason string
		frame        []byte
	}{
		{"another's IPv4 address", "ipv4", ethernet(broadcast, mineMAC, ip4, ipv4(other, gateway4, 17, udp(1, 9, mark)))},
		{"the gateway's IPv4 address", "ipv4", ethernet(otherMAC, mineMAC, ip4, ipv4(gateway4, other, 17, udp(1, 9, mark)))},
		{"an address of anywhere", "ipv4", ethernet(broadcast, mineMAC, ip4, ipv4("192.0.2.1", other, 17, udp(1, 9, mark)))},
		{"no IPv4 address", "ipv4", ethernet(broadcast, mineMAC, ip4, ipv4("0.0.0.0", "255.255.255.255", 17, udp(68, 67, mark)))},
		{"another's MAC", "ipv4", ethernet(broadcast, otherMAC, ip4, ipv4(mine, other, 17, udp(1, 9, mark)))},
		{"another's MAC and address", "ipv4", ethernet(broadcast, otherMAC, ip4, ipv4(other, gateway4, 17, udp(1, 9, mark)))},
		{"another's IPv6 address", "ipv6", ethernet(allNodesMAC, mineMAC, ip6, ipv6(other6, allNodes, 17, udp(1, 9, mark)))},
		{"the gateway's IPv6 address", "ipv6", ethernet(allNodesMAC, mineMAC, ip6, ipv6(gateway6, allNodes, 17, udp(1, 9, mark)))},
		{"another's link-local address", "ipv6", ethernet(allNodesMAC, mineMAC, ip6, ipv6(otherLL, allNodes, 17, udp(1, 9, mark)))},
		{"another's MAC over IPv6", "ipv6", ethernet(allNodesMAC, otherMAC, ip6, ipv6(mine6, allNodes, 17, udp(1, 9, mark)))},
		{"no IPv6 address", "ipv6", ethernet(allNodesMAC, mineMAC, ip6, ipv6("::", allNodes, 17, udp(1, 9, mark)))},
		{"groups from a forged MAC", "", ethernet(allNodesMAC, forgedMAC, ip6, nd("::", allNodes, 143, make([]byte, 4)))},
		{"ARP reply for the gateway", "arp", ethernet(broadcast, mineMAC, arpType, arp(2, mineMAC, gateway4, otherMAC, other, mark))},
		{"ARP reply for another", "arp", ethernet(broadcast, mineMAC, arpType, arp(2, mineMAC, other, broadcast, gateway4, mark))},
		{"gratuitous ARP for another", "arp", ethernet(broadcast, mineMAC, arpType, arp(1, mineMAC, other, nobody, other, mark))},
		{"ARP with another's MAC within", "arp", ethernet(broadcast, mineMAC, arpType, arp(2, otherMAC, mine, broadcast, gateway4, mark))},
		{"ARP with another's MAC without", "arp", ethernet(broadcast, otherMAC, arpType, arp(2, mineMAC, mine, broadcast, gateway4, mark))},
		{"ARP probe for another's address", "arp", ethernet(broadcast, mineMAC, arpType, arp(1, mineMAC, "0.0.0.0", nobody, other, mark))},
		{"ARP reply from no address", "arp", ethernet(broadcast, mineMAC, arpType, arp(2, mineMAC, "0.0.0.0", nobody, mine, mark))},
		{"advertisement of another's address", "nd", ethernet(allNodesMAC, mineMAC, ip6, nd(mine6, allNodes, 136, flags, addr(other6), option(2, mac(mineMAC))))},
		{"advertisement of the gateway", "nd", ethernet(allNodesMAC, mineMAC, ip6, nd(mineLL, allNodes, 136, flags, addr(gateway6), option(2, mac(mineMAC))))},
		{"advertisement behind options", "nd", ethernet(allNodesMAC, mineMAC, ip6, ipv6(mine6, allNodes, 0,
			join([]byte{58, 0, 1, 4, 0, 0, 0, 0}, icmpv6(mine6, allNodes, 136, join(flags, addr(other6), option(14, []byte(mark)))))))},
		{"advertisement in a fragment", "nd", ethernet(allNodesMAC, mineMAC, ip6, ipv6(mine6, allNodes, 44,
			join([]byte{58, 0, 0, 1, 0, 0, 0, 7}, icmpv6(mine6, allNodes, 136, join(flags, addr(other6), option(14, []byte(mark)))))))},
		{"collision with another's address", "ipv6", ethernet(allNodesMAC, mineMAC, ip6, nd("::", allNodes, 135, make([]byte, 4), addr(other6)))},
		{"solicitation as another", "ipv6", ethernet(allNodesMAC, mineMAC, ip6, nd(other6, allNodes, 135, make([]byte, 4), addr(gateway6), option(1, mac(mineMAC))))},
		{"router", "nd", ethernet(allNodesMAC, mineMAC, ip6, nd(mineLL, allNodes, 134, []byte{64, 0, 7, 8}, make([]byte, 8)))},
		{"redirect", "nd", ethernet(allNodesMAC, mineMAC, ip6, nd(mineLL, allNodes, 137, make([]byte, 4), addr(mine6), addr(gateway6)))},
		{"DHCP server", "dhcp", ethernet(broadcast, mineMAC, ip4, ipv4(mine, "255.255.255.255", 17, udp(67, 68, mark)))},
		{"DHCPv6 server", "dhcp", ethernet(allNodesMAC, mineMAC, ip6, ipv6(mineLL, allNodes, 17, udp(547, 546, mark)))},
		{"VLAN tag", "ethertype", ethernet(broadcast, mineMAC, "\x81\x00\x00\x05"+ip4, ipv4(mine, other, 17, udp(1, 9, mark)))},
		{"VLAN tag and another's address", "ethertype", ethernet(broadcast, mineMAC, "\x81\x00\x00\x00"+ip4, ipv4(other, mine, 17, udp(1, 9, mark)))},
		{"two VLAN tags", "ethertype", ethernet(broadcast, mineMAC, "\x88\xa8\x00\x05\x81\x00\x00\x05"+ip4, ipv4(mine, other, 17, udp(1, 9, mark)))},
		{"LLDP to all", "ethertype", ethernet(broadcast, mineMAC, "\x88\xcc", []byte(mark))},
		{"EAPOL to all", "ethertype", ethernet(broadcast, mineMAC, "\x88\x8e", []byte(mark))},
		{"bridge protocol", "ethertype", ethernet("01:80:c2:00:00:00", mineMAC, "\x00\x26", join([]byte{0x42, 0x42, 3}, make([]byte, 35), []byte(mark)))},
		{"RARP", "ethertype", ethernet(broadcast, mineMAC, "\x80\x35", []byte(mark))},
		{"PPPoE server", "ethertype", ethernet(broadcast, mineMAC, "\x88\x63", []byte(mark))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := p.dropped(t)
			if p.arrives(tt.frame, mark) {
				t.Error("it arrives")
			}
			after := p.dropped(t)
			for name, n := range after {
				if want := before["container-"+tt.reason]; name == "container-"+tt.reason && n != want+1 || name != "container-"+tt.reason && n != before[name] {
					t.Errorf("%s: %d dropped, and %d before", name, n, before[name])
				}
			}
		})
	}
}

// TestAttackMACFlood sends frames from 20,000 MACs, by all that a bridge could learn from.
func TestAttackMACFlood(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]map[string]any{"in process": {}, "reference": reference(map[string]any{"runtimeConfig": map[string]any{"mac": mineMAC}})} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newPair(t, more).flood(t)
		})
	}
}

func (p *pair) flood(t *testing.T) {
	t.Helper()
	table := func() int {
		return strings.Count(mustRun(t, "bridge", "-n", strings.TrimPrefix(p.ns, "/run/netns/"), "fdb", "show", "br", "cni0"), "\n")
	}
	before := table()
	for i := range 20000 {
		forged := fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8&0xff, i&0xff)
		switch i % 5 {
		case 0:
			p.mine.send(ethernet(broadcast, forged, ip4, ipv4(mine, other, 17, udp(1, 9, mark))))
		case 1:
			p.mine.send(ethernet("01:80:c2:00:00:0e", forged, "\x88\xcc", []byte(mark)))
		case 2:
			p.mine.send(ethernet("01:80:c2:00:00:03", forged, "\x88\x8e", []byte(mark)))
		case 3:
			p.mine.send(ethernet("01:80:c2:00:00:00", forged, "\x00\x26", join([]byte{0x42, 0x42, 3}, make([]byte, 35))))
		case 4:
			p.mine.send(ethernet(allNodesMAC, forged, ip6, ipv6("::", allNodes, 58, icmpv6("::", allNodes, 143, make([]byte, 4)))))
		}
	}
	p.arrives(ethernet(broadcast, mineMAC, ip4, ipv4(mine, other, 17, udp(1, 9, mark))), mark)
	if after := table(); after > before+2 { // the two containers' own
		t.Errorf("the bridge knows %d MACs, and knew %d", after, before)
	}
}

// TestAttackAddsAddress gives a container, as its root may, addresses and a MAC that are not its own.
func TestAttackAddsAddress(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	in := func(id string, args ...string) error {
		return exec.Command("nsenter", append([]string{"--net=/run/netns/" + p.network + id}, args...)...).Run()
	}
	ping := func(id, to string) error { return in(id, "ping", "-n", "-c1", "-W1", to) }
	for _, to := range []string{other, other6, gateway4, gateway6} {
		if err := ping("mine", to); err != nil {
			t.Fatalf("ping %s: %v", to, err)
		}
	}
	for _, forged := range []string{"10.5.72.77", other, "fc00:7:0:4c::77", other6} {
		bits := map[bool]string{true: "/128", false: "/32"}[strings.Contains(forged, ":")]
		ip(t, p.network+"mine", "addr", "add", forged+bits, "dev", "eth0", "nodad")
		if err := in("mine", "ping", "-n", "-c1", "-W1", "-I", forged, map[bool]string{true: gateway6, false: gateway4}[bits == "/128"]); err == nil {
			t.Errorf("as %s the container reaches the gateway", forged)
		}
		if err := in("other", "ping", "-n", "-c1", "-W1", map[bool]string{true: gateway6, false: gateway4}[bits == "/128"]); err != nil {
			t.Errorf("the other container is cut off: %v", err)
		}
		ip(t, p.network+"mine", "addr", "del", forged+bits, "dev", "eth0")
	}
	if err := ping("mine", gateway4); err != nil {
		t.Errorf("and back: %v", err)
	}
	ip(t, p.network+"mine", "link", "set", "eth0", "address", otherMAC)
	if err := ping("mine", gateway4); err == nil {
		t.Error("with another's MAC the container reaches the gateway")
	}
	if err := ping("other", gateway4); err != nil {
		t.Errorf("the other container is cut off: %v", err)
	}
}

// TestAttackRouterAdvertisement: a container takes no router from another, though the guard is off.
func TestAttackRouterAdvertisement(t *testing.T) {
	t.Parallel()
	for name, delegate := range map[string]map[string]any{"in process": {"isDefaultGateway": true}, "reference": {"type": "bridge", "isDefaultGateway": true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, dualLease)
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: map[string]any{"delegate": delegate}}
			h.mustAdd(t, r)
			wire := openWire(t, h.ns, "cni0")
			const router = "fe80::1"
			advert := icmpv6(router, allNodes, 134, []byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0})
			wire.send(ethernet(allNodesMAC, forgedMAC, ip6, ipv6(router, allNodes, 58, advert)))
			mustRun(t, "nsenter", "--net="+r.netns, "ping", "-n", "-c1", "-i0.2", "-w10", gateway6) // comes after it
			if routes := ip(t, r.netns, "-6", "route", "show", "default"); strings.Contains(routes, router) {
				t.Errorf("it has a route by the forger: %s", routes)
			}
		})
	}
}

// TestAttackRouted forges from a container that routes lead to.
func TestAttackRouted(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	h.guard(t)
	ptp := map[string]any{"delegate": map[string]any{"type": "ptp"}}
	r := request{id: "mine", ifName: "eth0", netns: h.addNamespace(t, "mine"), more: ptp}
	h.mustAdd(t, r)
	o := request{id: "other", ifName: "eth0", netns: h.addNamespace(t, "other"), more: ptp}
	h.mustAdd(t, o)
	in := func(args ...string) error {
		return exec.Command("nsenter", append([]string{"--net=" + r.netns, "ping", "-n", "-c1", "-W1"}, args...)...).Run()
	}
	for _, to := range []string{other, other6, gateway4, gateway6} {
		if err := in("-c1", "-i0.2", "-w10", to); err != nil { // the host's end looks for others with its address (DAD)
			t.Errorf("ping %s: %v", to, err)
		}
	}
	ip(t, r.netns, "addr", "add", "10.5.72.77/32", "dev", "eth0")
	ip(t, r.netns, "addr", "add", "fc00:7:0:4c::77/128", "dev", "eth0", "nodad")
	listen := openWire(t, o.netns, "eth0")
	for from, to := range map[string]string{"10.5.72.77": other, "fc00:7:0:4c::77": other6} {
		if err := in("-I", from, "-p", "f0f1f2f3", to); err == nil {
			t.Errorf("as %s it reaches %s", from, to)
		}
	}
	if err := in("-p", "abacadae", other); err != nil {
		t.Fatal(err)
	}
	if listen.heard("\xf0\xf1\xf2\xf3\xf0\xf1", "\xab\xac\xad\xae\xab\xac") {
		t.Error("what is forged arrives")
	}
	if n := h.dropped(t)["container-routed"]; n < 2 {
		t.Errorf("%d dropped", n)
	}
}
