package firewall

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// Two networks have chains and sets of their own in one table: what is of the other's VNIs is for the other's to judge.
func TestGuardsOfTwoNetworks(t *testing.T) {
	t.Parallel()
	ns, unnamed, blue := nstest.New(t), allParts(), allParts()
	unnamed.Overlay, unnamed.Containers, unnamed.Beside, unnamed.Others = false, false, "10.6.0.0/16", "7"
	unnamed.Overlay = true
	blue.Ranges = [2]Range{{netip.MustParsePrefix("10.6.0.0/16"), "10.6.1.0/24"}}
	blue.Network, blue.Beside, blue.Others = "blue", "10.5.0.0/16 fd00:5::/48", "1"
	apart := Apart{From: net4.String(), To: "10.6.0.0/16, 10.7.0.0/16", FromLinks: `"overlay.1"`, ToLinks: `"overlay.7"`}
	across := Across{From: netip.MustParsePrefix("10.6.0.0/16"), To: net4}
	apply(t, newFirewall(ns), 1, unnamed, blue, apart, across)
	const want = `input: udp dport @ports goto tunnel
tunnel: @th,96,24 0x7 accept
tunnel: ip saddr @peers4 accept
tunnel: ip6 saddr @peers6 accept
tunnel: counter name "stranger" drop
incoming: meta iifkind "vxlan" iifname @links goto overlay
overlay: meta pkttype != host counter name "frame" drop
overlay: ip saddr 10.5.0.0/16 ip saddr != { 10.5.1.0/24, 10.5.7.0/24 } ip daddr != 224.0.0.0/3 accept
overlay: icmpv6 type 130-137 counter name "frame" drop
overlay: ip6 saddr fd00:5::/48 ip6 saddr != fd00:5:0:1::/64 ip6 daddr != ff00::/8 accept
overlay: counter name "source" drop
input.blue: udp dport @ports.blue goto tunnel.blue
tunnel.blue: @th,96,24 0x1 accept
tunnel.blue: ip saddr @peers4.blue accept
tunnel.blue: ip6 saddr @peers6.blue accept
tunnel.blue: counter name "stranger" drop
incoming.blue: meta iifkind "vxlan" iifname @links.blue goto overlay.blue
overlay.blue: meta pkttype != host counter name "frame" drop
overlay.blue: ip saddr 10.6.0.0/16 ip saddr != 10.6.1.0/24 ip daddr != 224.0.0.0/3 accept
overlay.blue: counter name "source" drop
incoming.blue: ip saddr 10.6.0.0/16 goto own-ip.blue
own-ip.blue: ip saddr != 10.6.1.0/24 goto others-ip.blue
own-ip.blue: iifname { "eth0", "eth1" } counter name "forged" drop
others-ip.blue: iifname @near.blue accept
others-ip.blue: counter name "forged" drop
outgoing.blue: meta oifkind "vxlan" oifname @links.blue goto leaving.blue
outgoing.blue: udp dport @ports.blue goto sending.blue
leaving.blue: ip saddr 10.6.1.0/24 accept
leaving.blue: counter name "leaving" drop
sending.blue: @th,96,24 0x1 accept
sending.blue: iif != 0 iifname != @links.blue fib saddr type local counter name "from-inside" drop
sending.blue: ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 counter name "from-inside" drop
sending.blue: ip6 saddr fd00:5::/48 ip6 daddr != fd00:5::/48 counter name "from-inside" drop
sending.blue: ip saddr 10.6.0.0/16 ip daddr != 10.6.0.0/16 counter name "from-inside" drop
apart: ip saddr 10.5.0.0/16 ip daddr { 10.6.0.0/15 } counter name "apart" drop
apart: iifname "overlay.1" oifname "overlay.7" counter name "apart" drop
postrouting: ip saddr 10.6.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
`
	if diff := cmp.Diff(sorted(want), sorted(rulesOf(nstest.Sh(t, ns, "nft -s list table inet overlayd")))); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	e := Peer(netip.MustParseAddr("192.0.2.1")).In("blue")
	if text := e.String(); !strings.Contains(text, "peers4.blue { 192.0.2.1 }") {
		t.Errorf("element %s", text)
	}
}
