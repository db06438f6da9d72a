package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

func allParts() Guard {
	return Guard{
		Tunnel: true, Overlay: true, Containers: true,
		Ranges:  [2]Range{{net4, "10.5.1.0/24, 10.5.7.0/24"}, {net6, "fd00:5:0:1::/64"}},
		Uplinks: `"eth0", "eth1"`,
	}
}

// What the kernel has of a guard, as operators see it. Each switch takes its part away and no other.
func TestGuardRules(t *testing.T) {
	t.Parallel()
	const (
		tunnel = `input: udp dport @ports goto tunnel
tunnel: ip saddr @peers4 accept
tunnel: ip6 saddr @peers6 accept
tunnel: counter name "stranger" drop
`
		overlay = `incoming: meta iifkind "vxlan" iifname @links goto overlay
overlay: meta pkttype != host counter name "frame" drop
overlay: ip saddr 10.5.0.0/16 ip saddr != { 10.5.1.0/24, 10.5.7.0/24 } ip daddr != 224.0.0.0/3 accept
overlay: icmpv6 type 130-137 counter name "frame" drop
overlay: ip6 saddr fd00:5::/48 ip6 saddr != fd00:5:0:1::/64 ip6 daddr != ff00::/8 accept
overlay: counter name "source" drop
`
		overIPv4 = `incoming: ip saddr 10.5.0.0/16 goto own-ip
own-ip: ip saddr != { 10.5.1.0/24, 10.5.7.0/24 } goto others-ip
own-ip: iifname { "eth0", "eth1" } counter name "forged" drop
others-ip: iifname @near accept
`
		forged = overIPv4 + `others-ip: counter name "forged" drop
incoming: ip6 saddr fd00:5::/48 goto own-ip6
own-ip6: ip6 saddr != fd00:5:0:1::/64 goto others-ip6
own-ip6: iifname { "eth0", "eth1" } counter name "forged" drop
others-ip6: iifname @near accept
others-ip6: counter name "forged" drop
`
		sending = `outgoing: meta oifkind "vxlan" oifname @links goto leaving
outgoing: udp dport @ports goto sending
sending: iif != 0 iifname != @links fib saddr type local counter name "from-inside" drop
sending: ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 counter name "from-inside" drop
`
		leaving = `leaving: ip saddr { 10.5.1.0/24, 10.5.7.0/24 } accept
leaving: ip6 saddr fd00:5:0:1::/64 accept
leaving: counter name "leaving" drop
` + sending + `sending: ip6 saddr fd00:5::/48 ip6 daddr != fd00:5::/48 counter name "from-inside" drop
`
	)
	alone := strings.Replace(tunnel, "tunnel: ip saddr", "tunnel: meta iifkind \"vxlan\" iifname @links counter name \"stranger\" drop\ntunnel: ip saddr", 1)
	for name, tt := range map[string]struct {
		change func(g *Guard)
		want   string
	}{
		"all":           {func(*Guard) {}, tunnel + overlay + forged + leaving},
		"tunnel alone":  {func(g *Guard) { g.Overlay, g.Containers = false, false }, alone},
		"overlay alone": {func(g *Guard) { g.Tunnel, g.Containers = false, false }, overlay},
		"containers":    {func(g *Guard) { g.Tunnel, g.Overlay = false, false }, "incoming: meta iifkind \"vxlan\" iifname @links accept\n" + forged + leaving},
		"routed by others": {func(g *Guard) { g.Routed = true }, tunnel + overlay + strings.NewReplacer(
			"others-ip: iifname @near accept\n", "others-ip: iifname @near accept\nothers-ip: fib saddr . iif oif exists accept\n",
			"others-ip6: iifname @near accept\n", "others-ip6: iifname @near accept\nothers-ip6: fib saddr . iif oif exists accept\n").Replace(forged) + leaving},
		"nothing is masqueraded": {func(g *Guard) { g.Tunnel, g.Bare, g.Ranges[1] = false, true, Range{} }, `incoming: meta iifkind "vxlan" iifname @links goto overlay
overlay: meta pkttype != host counter name "frame" drop
overlay: ip saddr 10.5.0.0/16 ip saddr != { 10.5.1.0/24, 10.5.7.0/24 } ip daddr != 224.0.0.0/3 accept
overlay: ip saddr @peers4 ip daddr { 10.5.1.0/24, 10.5.7.0/24 } accept
overlay: counter name "source" drop
` + overIPv4 + `others-ip: iifname { "eth0", "eth1" } fib daddr type local accept
others-ip: counter name "forged" drop
leaving: ip saddr { 10.5.1.0/24, 10.5.7.0/24 } accept
leaving: iif 0 accept
leaving: counter name "leaving" drop
` + sending},
		"others' tunnels": {func(g *Guard) { g.Overlay, g.Containers, g.Others = false, false, "5, 7" }, strings.Replace(alone, "tunnel: counter", "tunnel: @th,96,24 { 0x5, 0x7 } accept\ntunnel: counter", 1)},
		"others' tunnels beside containers": {func(g *Guard) { g.Tunnel, g.Overlay, g.Others = false, false, "5, 7" }, "incoming: meta iifkind \"vxlan\" iifname @links accept\n" + forged +
			strings.Replace(leaving, "sending: iif", "sending: @th,96,24 { 0x5, 0x7 } accept\nsending: iif", 1)},
		"protocol 4": {func(g *Guard) {
			g.Overlay, g.Ranges[1], g.Kinds, g.IPIP, g.Ends = false, Range{}, `"ipip", "vxlan"`, true, "192.0.2.7"
		}, `input: udp dport @ports goto tunnel
input: ip protocol ipencap meta iifkind { "ipip", "vxlan" } iifname @links counter name "stranger" drop
input: ip protocol ipencap ip saddr != @peers4 ip saddr != 192.0.2.7 counter name "stranger" drop
tunnel: meta iifkind { "ipip", "vxlan" } iifname @links counter name "stranger" drop
tunnel: ip saddr @peers4 accept
tunnel: ip6 saddr @peers6 accept
tunnel: counter name "stranger" drop
incoming: meta iifkind { "ipip", "vxlan" } iifname @links accept
` + overIPv4 + `others-ip: counter name "forged" drop
leaving: ip saddr { 10.5.1.0/24, 10.5.7.0/24 } accept
leaving: counter name "leaving" drop
outgoing: meta oifkind { "ipip", "vxlan" } oifname @links goto leaving
outgoing: udp dport @ports goto sending
outgoing: ip protocol ipencap iif != 0 meta iifkind != "ipip" fib saddr type local counter name "from-inside" drop
outgoing: ip protocol ipencap ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 counter name "from-inside" drop
sending: iif != 0 iifname != @links fib saddr type local counter name "from-inside" drop
sending: ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 counter name "from-inside" drop
`},
		"no subnet of a family yet": {func(g *Guard) { g.Tunnel, g.Containers, g.Ranges[1].Local = false, false, "" }, strings.Replace(overlay, "fd00:5:0:1::/64", "::", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, g := nstest.New(t), allParts()
			tt.change(&g)
			apply(t, newFirewall(ns), 1, g)
			if diff := cmp.Diff(sorted(tt.want), sorted(rulesOf(nstest.Sh(t, ns, "nft -s list table inet overlayd")))); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}

// rulesOf are the rules that nft printed, each behind the name of its chain.
func rulesOf(table string) (rules string) {
	chain := ""
	for line := range strings.Lines(table) {
		words := strings.Fields(line)
		switch {
		case len(words) == 3 && words[0] == "chain":
			chain = words[1]
		case len(words) == 0 || words[0] == "}":
			chain = ""
		case chain != "" && words[0] != "type":
			rules += chain + ": " + strings.TrimSpace(line) + "\n"
		}
	}
	return rules
}

// sorted has chains in one order; within each the order counts.
func sorted(rules string) map[string][]string {
	chains := map[string][]string{}
	for line := range strings.Lines(rules) {
		chain, rule, _ := strings.Cut(line, ": ")
		chains[chain] = append(chains[chain], rule)
	}
	return chains
}

// A host that cannot have the guard has all the rest, and says what is missing.
func TestGuardThatCannotBe(t *testing.T) {
	ns := nstest.New(t)
	f := Firewall{held: newFirewall(ns)}
	t.Run("no nft", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		apply(t, f.held, 0, allParts())
		if err := f.Unguarded(); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "install the package nftables") {
			t.Errorf("missing: %v", err)
		}
	})
	t.Run("no such rule", func(t *testing.T) {
		bad := allParts()
		bad.Others = "no number"
		apply(t, f.held, 1, bad, Masquerade{net4})
		if err := f.Unguarded(); err == nil {
			t.Error("nothing is missing")
		}
		if got := nstest.Sh(t, ns, "nft list table inet overlayd"); !strings.Contains(got, "masquerade") || strings.Contains(got, "peers4") {
			t.Errorf("table: %s", got)
		}
	})
	apply(t, f.held, 1, allParts(), Masquerade{net4})
	if err := f.Unguarded(); err != nil {
		t.Errorf("missing: %v", err)
	}
}

func TestGuardElements(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]Element{
		"nft 'add element inet overlayd peers4 { 192.0.2.1 }'":       Peer(netip.MustParseAddr("192.0.2.1")),
		"nft 'add element inet overlayd peers6 { 2001:db8::1 }'":     Peer(netip.MustParseAddr("2001:db8::1")),
		"nft 'add element inet overlayd ports { 8472 }'":             Port(8472),
		`nft 'add element inet overlayd links { "overlay.1" }'`:      Link("overlay.1"),
		`nft 'add element inet overlayd links { "overlay6.p8472" }'`: Link("overlay6.p8472"),
		`nft 'add element inet overlayd near { "eth0" }'`:            Near("eth0"),
	} {
		if got := e.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	// What is printed is what the kernel gets.
	ns := nstest.New(t)
	f := start(t, ns)
	f.Elements.Replace("", []Claim{{"peer", []Element{Peer(netip.MustParseAddr("192.0.2.1")), Peer(netip.MustParseAddr("2001:db8::1")), Port(8472), Link("overlay.1")}}})
	f.Set("", []Rule{allParts()})
	<-f.Applied()
	for set, want := range map[string]string{"peers4": "192.0.2.1", "peers6": "2001:db8::1", "ports": "8472", "links": `"overlay.1"`} {
		if got := inSet(t, ns, set); got != want {
			t.Errorf("set %s: %s, want %s", set, got, want)
		}
	}
}

// What was dropped is counted by the reason, also after the rules changed.
func TestDropped(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	registry := prometheus.NewRegistry()
	registry.MustRegister(counted{ns})
	if found, err := registry.Gather(); len(found) != 0 || err != nil {
		t.Errorf("without a table: %v, %v", found, err)
	}
	f := newFirewall(ns)
	g := allParts()
	apply(t, f, 1, g)
	nstest.Sh(t, ns, `ip link set lo up; nft add element inet overlayd ports '{ 8472 }'
		bash -c 'echo x > /dev/udp/127.0.0.1/8472'`)
	g.Uplinks = ""
	apply(t, f, 1, g)
	got, err := Dropped(ns)
	if err != nil || got["stranger"] == 0 || len(got) != 6 {
		t.Errorf("dropped %v, %v", got, err)
	}
	if found, err := registry.Gather(); err != nil || len(found) != 1 || len(found[0].GetMetric()) != 6 {
		t.Errorf("metrics %v, %v, want one with 6 reasons", found, err)
	}
}

// A vxlan link of somebody else's at our port goes on, in both directions.
func TestGuardLeavesOthersTunnels(t *testing.T) {
	t.Parallel()
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Sh(t, ns, "ip link add eth0 type veth peer name eth0 netns "+nstest.Path(peer))
	for i, end := range []netns.NsHandle{ns, peer} {
		nstest.Sh(t, end, fmt.Sprintf(`ip addr add 192.0.2.%[1]d/24 dev eth0
			ip link set eth0 up
			ip link add vx7 type vxlan id 7 local 192.0.2.%[1]d remote 192.0.2.%[2]d dstport 8472
			ip addr add 10.77.0.%[1]d/24 dev vx7
			ip link set vx7 up`, i+1, 2-i))
	}
	f, g := start(t, ns), allParts()
	g.Others = "7"
	f.Elements.Replace("", []Claim{{"self", []Element{Port(8472), Link("overlay.1")}}})
	f.Set("", []Rule{g})
	<-f.Applied()
	if err := f.Unguarded(); err != nil {
		t.Fatal(err)
	}
	nstest.Sh(t, ns, "ping -c1 -W2 10.77.0.2")
}
