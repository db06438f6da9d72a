package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/ports"
	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// guard loads what the daemon holds.
func (h *host) guard(t *testing.T) {
	t.Helper()
	for _, family := range []string{"bridge", "inet"} {
		h.nft(t, "add table "+family+" overlayd\n"+strings.Join(ports.Rules(family), "\n")+"\n")
	}
}

func (h *host) nft(t *testing.T, script string) string {
	t.Helper()
	cmd := exec.Command("nsenter", "--net="+h.ns, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	return string(out)
}

// dropped reads the counters, by name, of both families.
func (h *host) dropped(t *testing.T) map[string]int {
	t.Helper()
	found := map[string]int{}
	for _, family := range []string{"bridge", "inet"} {
		var list struct {
			Nftables []struct {
				Counter struct {
					Name    string
					Packets int
				}
			}
		}
		out := mustRun(t, "nsenter", "--net="+h.ns, "nft", "-j", "list", "counters", "table", family, "overlayd")
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		for _, c := range list.Nftables {
			found[c.Counter.Name] += c.Counter.Packets
		}
	}
	return found
}

// What the two containers of the tests have, and the gateway.
const (
	mineMAC, mine, mine6    = "0a:ff:0a:05:48:02", "10.5.72.2", "fc00:7:0:4c::2"
	otherMAC, other, other6 = "0a:ff:0a:05:48:03", "10.5.72.3", "fc00:7:0:4c::3"
	gateway4, gateway6      = "10.5.72.1", "fc00:7:0:4c::1"
	mineLL, otherLL         = "fe80::8ff:aff:fe05:4802", "fe80::8ff:aff:fe05:4803"
	forgedMAC, nobody       = "02:00:00:00:00:99", "00:00:00:00:00:00"
	allNodes, allNodesMAC   = "ff02::1", "33:33:00:00:00:01"
	ip4, ip6, arpType       = "\x08\x00", "\x86\xdd", "\x08\x06"
)

// pair is a host with two containers on its bridge.
type pair struct {
	*host
	mine, other, bridge wire
	seq                 int
}

func newPair(t *testing.T, more ...map[string]any) *pair {
	t.Helper()
	h := newHost(t, dualLease)
	h.guard(t)
	r := request{id: "mine", ifName: "eth0", netns: h.addNamespace(t, "mine")}
	if len(more) > 0 {
		r.more = more[0]
	}
	h.mustAdd(t, r)
	o := request{id: "other", ifName: "eth0", netns: h.addNamespace(t, "other")}
	h.mustAdd(t, o)
	return &pair{host: h, mine: openWire(t, r.netns, "eth0"), other: openWire(t, o.netns, "eth0"), bridge: openWire(t, h.ns, "cni0")}
}

// arrives sends a frame, which has the mark in it, and says whether the other container or the host hears it. What may be sent
// is sent after it, and takes the same way.
func (p *pair) arrives(frame []byte, mark string) bool {
	p.seq++
	fence := fmt.Sprintf("fence-%d-", p.seq)
	p.mine.send(frame)
	p.mine.send(ethernet(broadcast, mineMAC, ip4, ipv4(mine, "10.5.72.255", 17, udp(1, 9, fence))))
	there, here := p.other.heard(mark, fence), p.bridge.heard(mark, fence)
	return there || here
}

const mark = "=forged="

// What containers do in good faith passes.
func TestGuardLetsPass(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	nd := func(src, dst string, typ byte, rest ...[]byte) []byte {
		return ipv6(src, dst, 58, icmpv6(src, dst, typ, join(append(rest, option(14, []byte(mark)))...)))
	}
	for name, frame := range map[string][]byte{
		"IPv4":                  ethernet(otherMAC, mineMAC, ip4, ipv4(mine, other, 17, udp(1, 9, mark))),
		"IPv4 to a group":       ethernet("01:00:5e:00:00:fb", mineMAC, ip4, ipv4(mine, "224.0.0.251", 17, udp(5353, 5353, mark))),
		"IPv6":                  ethernet(otherMAC, mineMAC, ip6, ipv6(mine6, other6, 17, udp(1, 9, mark))),
		"IPv6 link-local":       ethernet("33:33:00:00:00:fb", mineMAC, ip6, ipv6(mineLL, "ff02::fb", 17, udp(5353, 5353, mark))),
		"ARP":                   ethernet(broadcast, mineMAC, arpType, arp(1, mineMAC, mine, nobody, gateway4, mark)),
		"ARP probe":             ethernet(broadcast, mineMAC, arpType, arp(1, mineMAC, "0.0.0.0", nobody, mine, mark)),
		"ARP announcement":      ethernet(broadcast, mineMAC, arpType, arp(2, mineMAC, mine, nobody, mine, mark)),
		"solicitation":          ethernet(allNodesMAC, mineMAC, ip6, nd(mine6, allNodes, 135, make([]byte, 4), addr(other6), option(1, mac(mineMAC)))),
		"DAD":                   ethernet(allNodesMAC, mineMAC, ip6, nd("::", allNodes, 135, make([]byte, 4), addr(mine6))),
		"DAD of link-local":     ethernet(allNodesMAC, mineMAC, ip6, nd("::", allNodes, 135, make([]byte, 4), addr(mineLL))),
		"advertisement":         ethernet(allNodesMAC, mineMAC, ip6, nd(mine6, allNodes, 136, make([]byte, 4), addr(mine6), option(2, mac(mineMAC)))),
		"router solicitation":   ethernet(allNodesMAC, mineMAC, ip6, nd(mineLL, allNodes, 133, make([]byte, 4))),
		"multicast groups":      ethernet(allNodesMAC, mineMAC, ip6, nd(mineLL, allNodes, 143, make([]byte, 4))),
		"ping":                  ethernet(allNodesMAC, mineMAC, ip6, nd(mine6, allNodes, 128, make([]byte, 4))),
		"DHCP from client port": ethernet(broadcast, mineMAC, ip4, ipv4(mine, "10.5.72.255", 17, udp(68, 67, mark))),
	} {
		if !p.arrives(frame, mark) {
			t.Errorf("%s does not arrive", name)
		}
	}
	if n := p.dropped(t); n["container-ipv4"]+n["container-arp"]+n["container-nd"]+n["container-ipv6"] > 0 {
		t.Errorf("dropped: %v", n)
	}
}

// inSets are the elements of the guard's sets, without the ports' names.
func (h *host) inSets(t *testing.T) int {
	t.Helper()
	n := 0
	for _, family := range []string{"bridge", "inet"} {
		var list struct {
			Nftables []struct {
				Set struct{ Elem []any }
			}
		}
		out := mustRun(t, "nsenter", "--net="+h.ns, "nft", "-j", "list", "table", family, "overlayd")
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		for _, x := range list.Nftables {
			n += len(x.Set.Elem)
		}
	}
	return n
}

// Each attachment has its elements, whatever makes it.
func TestGuardElements(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		conf  map[string]any
		count int // port, one of IPv4, two of IPv6, two targets
	}{
		{"bridge", nil, 6},
		{"the reference bridge", map[string]any{"delegate": map[string]any{"type": "bridge", "isDefaultGateway": true, "promiscMode": true}}, 6},
		{"allowed sources", map[string]any{"args": map[string]any{"cni": map[string]any{
			"allowedSources": []string{"10.9.0.0/16", "10.9.7.0/24", "192.0.2.7/32", "2001:db8::/32"}}}}, 9},
		{"ptp", map[string]any{"delegate": map[string]any{"type": "ptp"}}, 1},
		{"macvlan", map[string]any{"delegate": map[string]any{"type": "macvlan", "master": "lan"}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, dualLease)
			h.guard(t)
			ip(t, h.ns, "link", "add", "lan", "up", "type", "vxlan", "id", "9", "dstport", "4789")
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: tt.conf}
			for i := range 2 { // the daemon sweeps those of the first, whose link is gone
				h.mustAdd(t, r)
				if got := h.inSets(t); got != tt.count*(i+1) {
					t.Errorf("%d elements after ADD, want %d", got, tt.count*(i+1))
				}
			}
			h.mustCall(t, r.del())
			h.wantClean(t)
		})
	}
}

// What is behind a trunk, nobody knows; macvlan has no end on the host.
func TestGuardOf(t *testing.T) {
	t.Parallel()
	for delegate, want := range map[string]string{
		`{"type":"bridge"}`:                        attachment.Bridged,
		`{"type":"bridge","vlan":7}`:               attachment.Bridged,
		`{"type":"ptp"}`:                           attachment.Routed,
		`{"type":"macvlan"}`:                       "",
		`{"type":"theirs"}`:                        "",
		`{"type":"bridge","vlanTrunk":[{"id":8}]}`: "",
	} {
		if got := guardOf(attachment.Attachment{Delegate: []byte(delegate)}); got != want {
			t.Errorf("%s: %q, want %q", delegate, got, want)
		}
	}
}

// Where the kernel refuses what is to be guarded the container is refused, and nothing of it stays.
func TestGuardRefused(t *testing.T) {
	t.Parallel()
	for name, delegate := range map[string]map[string]any{"in process": {}, "reference": {"type": "bridge"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, dualLease)
			h.nft(t, "add table bridge overlayd\nadd set bridge overlayd ports { type iface_index; }\n"+
				"add set bridge overlayd own4 { type inet_service; }\nadd set bridge overlayd own6 { type inet_service; }\n"+
				"add set bridge overlayd target6 { type inet_service; }\nadd table inet overlayd")
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: map[string]any{"delegate": delegate}}
			_, _, err := h.add(r)
			if err == nil || !strings.Contains(err.Error(), "guard of the port") {
				t.Fatalf("ADD: %v", err)
			}
			if got := h.inSets(t); got != 0 {
				t.Errorf("%d elements left", got)
			}
			h.wantClean(t)
		})
	}
}

// Who routes for others may send from what it is allowed, with its own MAC, and answers no ARP for it.
func TestGuardAllowedSources(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]any{"args": map[string]any{"cni": map[string]any{"allowedSources": []string{"10.9.0.0/16", "2001:db8::/32"}}}})
	for name, frame := range map[string][]byte{
		"IPv4": ethernet(otherMAC, mineMAC, ip4, ipv4("10.9.255.7", other, 17, udp(1, 9, mark))),
		"IPv6": ethernet(otherMAC, mineMAC, ip6, ipv6("2001:db8:ffff::7", other6, 17, udp(1, 9, mark))),
	} {
		if !p.arrives(frame, mark) {
			t.Errorf("%s does not arrive", name)
		}
	}
	for name, frame := range map[string][]byte{
		"beside it": ethernet(otherMAC, mineMAC, ip4, ipv4("10.10.0.0", other, 17, udp(1, 9, mark))),
		"other MAC": ethernet(otherMAC, forgedMAC, ip4, ipv4("10.9.255.7", other, 17, udp(1, 9, mark))),
		"ARP":       ethernet(broadcast, mineMAC, arpType, arp(2, mineMAC, "10.9.0.1", broadcast, other, mark)),
	} {
		if p.arrives(frame, mark) {
			t.Errorf("%s arrives", name)
		}
	}
}

// Who changes the MAC after the guard has learned it hears of it from CHECK; who asks this plugin for it is served.
func TestGuardAndTuning(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	h.guard(t)
	l := newList(t, h, "", `{"type":"tuning","mac":"02:aa:00:00:00:07","dataDir":"/var/lib/tuning"}`)
	netns := h.addNamespace(t, "c1")
	l.must("add", netns)
	if err := l.call("check", netns); err == nil || !strings.Contains(err.Error(), "the guard knows 0a:ff:0a:05:48:02: ask this plugin") {
		t.Errorf("CHECK: %v", err)
	}
	l.must("del", netns)
	r := request{id: "c2", ifName: "eth0", netns: h.addNamespace(t, "c2"), more: map[string]any{
		"runtimeConfig": map[string]any{"mac": "02:aa:00:00:00:07"}}}
	_, result := h.mustAdd(t, r)
	mustRun(t, "nsenter", "--net="+r.netns, "ping", "-n", "-c1", "-W2", gateway4)
	r.command = "CHECK"
	r.more["prevResult"] = result
	h.mustCall(t, r)
}

// What else is plugged into the bridge, a card of the host's say, is none of the guard's.
func TestGuardLeavesOtherPorts(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	lan := p.addNamespace(t, "lan")
	ip(t, p.ns, "link", "add", "card", "up", "master", "cni0", "type", "veth", "peer", "lan0", "netns", p.network+"lan")
	ip(t, lan, "link", "set", "lan0", "up")
	wire := openWire(t, lan, "lan0")
	for _, frame := range [][]byte{
		ethernet(broadcast, forgedMAC, ip4, ipv4("192.0.2.1", other, 17, udp(1, 9, mark))),
		ethernet(broadcast, forgedMAC, arpType, arp(2, forgedMAC, "192.0.2.1", broadcast, other, mark)),
		ethernet(broadcast, forgedMAC, "\x88\xcc", []byte(mark)),
	} {
		deadline := time.Now().Add(10 * time.Second) // until the bridge forwards what comes from there
		for wire.send(frame); !p.arrives(ethernet(broadcast, mineMAC, arpType, arp(1, mineMAC, mine, nobody, gateway4, "own")), mark); wire.send(frame) {
			if time.Now().After(deadline) {
				t.Fatalf("%x does not arrive", frame)
			}
		}
	}
}
