package firewall

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Range is a network's range, and what of it is this host's.
type Range struct {
	Network netip.Prefix
	Local   string // the host's own subnets, with ", " between them; "" while it has none of the family
}

// Guard keeps out of the overlay what nobody of it sends, and keeps containers from seeming to be another, or a host. It has
// three parts. It is static: peers, ports and links are elements.
type Guard struct {
	Tunnel     bool // of what comes to a vxlan port only what a peer sends
	Overlay    bool // of what comes by an overlay link only what is for this host and from another's containers
	Containers bool // of what containers send only what is theirs

	Network string   // the network's name; empty: it has none, or there is no other
	Beside  string   // the ranges of the host's other networks, with " " between them
	Ranges  [2]Range // of the network, one a family; the zero Range: no more
	Uplinks string   // the links by which packets come from elsewhere, in quotes, with ", " between them
	Bare    bool     // nothing is masqueraded: what containers send to other hosts' own addresses comes as theirs, and is answered by the overlay
	Kinds   string   // of overlay links, as the kernel names them, in quotes, with ", " between them; "": vxlan
	Routed  bool     // packets of other hosts' containers come by the links that the routes to them lead to, whatever those are
	Others  string   // VNIs of vxlan links at our ports that are somebody else's, or another network's, with ", " between them
	IPIP    bool     // protocol 4 is the overlay's
	Ends    string   // addresses that others' ipip links of this host lead to, with ", " between them
}

func (Guard) place() string    { return "inet" }
func (Guard) guard()           {}
func (g Guard) String() string { return shell(g.nft()) }

// nft implements ruled.
func (g Guard) nft() (lines []string) {
	for _, set := range [][2]string{{"peers4", "ipv4_addr"}, {"peers6", "ipv6_addr"}, {"ports", "inet_service"}, {"links", "ifname"}, {"near", "ifname"}} {
		lines = append(lines, fmt.Sprintf("add set inet overlayd %s { type %s; }", g.own(set[0]), set[1]))
	}
	if g.Tunnel {
		lines = append(lines, g.tunnel()...)
	}
	if g.Overlay || g.Containers {
		lines = append(lines, "add chain inet overlayd "+g.own("incoming")+" { type filter hook prerouting priority -300; }")
	}
	if g.Overlay {
		lines = append(lines, g.overlay()...)
	}
	if g.Containers {
		lines = append(lines, g.containers()...)
	}
	return lines
}

// tunnel is for the hook where a datagram is whole: by then its fragments are put together. The kernel's socket hears all
// links, so none is named. No vxlan comes by vxlan: a peer's containers are no peer.
func (g Guard) tunnel() []string {
	c, in := chain(g.own("tunnel")), chain(g.own("input"))
	in.add("udp dport @"+g.own("ports"), "goto", c.name)
	if g.Bare || !g.Overlay { // else its source is of the network, and of no peer
		c.add(g.byTunnel(), drop("stranger"))
		if g.IPIP {
			in.add("ip protocol 4", g.byTunnel(), drop("stranger"))
		}
	}
	switch {
	case g.IPIP && g.Ends != "":
		in.add("ip protocol 4 ip saddr != @"+g.own("peers4"), "ip saddr != {", g.Ends, "}", drop("stranger"))
	case g.IPIP:
		in.add("ip protocol 4 ip saddr != @"+g.own("peers4"), drop("stranger"))
	}
	if g.Others != "" && g.Network+g.Beside != "" { // before what comes from a peer of this network, which may be none of the other's
		c.add("@th,96,24 { " + g.Others + " } accept")
	}
	c.add("ip saddr @"+g.own("peers4"), "accept")
	c.add("ip6 saddr @"+g.own("peers6"), "accept")
	if g.Others != "" && g.Network+g.Beside == "" {
		c.add("@th,96,24 { " + g.Others + " } accept")
	}
	c.add(drop("stranger"))
	return slices.Concat([]string{
		"add chain inet overlayd " + in.name + " { type filter hook input priority -300; }",
		"add chain inet overlayd " + c.name,
		"add counter inet overlayd stranger",
	}, in.rules, c.rules)
}

func (g Guard) overlay() []string {
	c := chain(g.own("overlay"))
	c.add("meta pkttype != host", drop("frame"))
	for _, r := range g.ranges() {
		if r.ip == "ip6" { // neighbours are known, and routers there are none
			c.add("icmpv6 type 130-137", drop("frame"))
		}
		c.add(r.ip, "saddr", r.Network.String(), r.ip, "saddr != {", r.Local, "}", r.ip, "daddr !=", r.group, "accept")
		if g.Bare {
			c.add(r.ip, "saddr @"+g.own(r.peers), r.ip, "daddr {", r.Local, "} accept")
		}
	}
	c.add(drop("source"))
	return append([]string{
		"add chain inet overlayd " + c.name,
		"add counter inet overlayd frame",
		"add counter inet overlayd source",
		"add rule inet overlayd " + g.own("incoming") + " " + g.byTunnel() + " goto " + c.name,
	}, c.rules...)
}

// containers looks at what comes before it is known where it goes, and at what leaves after it is known from where: Docker's
// containers, say, hide behind this host's address, and to peers their vxlan would be ours. That is seen without the help of
// conntrack, which some hosts do without: what is forwarded (the kernel says so here since 5.7) and comes from this host.
func (g Guard) containers() []string {
	in, out, leaving, sending := chain(g.own("incoming")), chain(g.own("outgoing")), chain(g.own("leaving")), chain(g.own("sending"))
	links := "@" + g.own("links")
	if !g.Overlay {
		in.add(g.byTunnel(), "accept")
	}
	out.add("meta oifkind", g.kinds(), "oifname", links, "goto", leaving.name)
	out.add("udp dport @"+g.own("ports"), "goto", sending.name)
	if g.IPIP { // what any ipip link makes of a packet comes, to the kernel, from that link
		out.add(`ip protocol 4 iif != 0 meta iifkind != "ipip" fib saddr type local`, drop("from-inside"))
	}
	if g.Others != "" { // what such a link makes of a packet comes, to the kernel, from that link
		sending.add("@th,96,24 { " + g.Others + " } accept")
	}
	sending.add("iif != 0 iifname !=", links, "fib saddr type local", drop("from-inside"))
	for r := range strings.FieldsSeq(g.Beside) { // to another host's tunnels of this network nothing comes from a container of another
		ip := "ip"
		if strings.Contains(r, ":") {
			ip = "ip6"
		}
		sending.add(ip, "saddr", r, ip, "daddr !=", r, drop("from-inside"))
	}
	lines := []string{
		"add chain inet overlayd " + out.name + " { type filter hook postrouting priority 150; }", // after srcnat
		"add chain inet overlayd " + leaving.name,
		"add chain inet overlayd " + sending.name,
		"add counter inet overlayd forged",
		"add counter inet overlayd leaving",
		"add counter inet overlayd from-inside",
	}
	for _, r := range g.ranges() {
		own, others := chain(g.own("own-"+r.ip)), chain(g.own("others-"+r.ip))
		in.add(r.ip, "saddr", r.Network.String(), "goto", own.name)
		own.add(r.ip, "saddr != {", r.Local, "} goto", others.name)
		if g.Uplinks != "" {
			own.add("iifname {", g.Uplinks, "}", drop("forged"))
		}
		others.add("iifname @"+g.own("near"), "accept")
		if g.Routed {
			others.add("fib saddr . iif oif exists accept")
		}
		if g.Bare && g.Uplinks != "" {
			others.add("iifname {", g.Uplinks, "} fib daddr type local accept")
		}
		others.add(drop("forged"))
		leaving.add(r.ip, "saddr {", r.Local, "} accept")
		sending.add(r.ip, "saddr", r.Network.String(), r.ip, "daddr !=", r.Network.String(), drop("from-inside"))
		if g.IPIP && r.ip == "ip" {
			out.add("ip protocol 4 ip saddr", r.Network.String(), "ip daddr !=", r.Network.String(), drop("from-inside"))
		}
		lines = append(lines, "add chain inet overlayd "+own.name, "add chain inet overlayd "+others.name)
		lines = append(append(lines, own.rules...), others.rules...)
	}
	if g.Bare {
		leaving.add("iif 0 accept")
	}
	leaving.add(drop("leaving"))
	return slices.Concat(lines, in.rules, out.rules, leaving.rules, sending.rules)
}

// byTunnel matches what came by an overlay link. To look for a name costs much more than to compare the kind, which most
// links of a host have not.
func (g Guard) byTunnel() string {
	return "meta iifkind " + g.kinds() + " iifname @" + g.own("links")
}

// own is what the network's own set or chain is called: two networks have nothing in common but the table and its counters.
func (g Guard) own(name string) string { return ownName(g.Network, name) }

func ownName(network, name string) string {
	if network == "" {
		return name
	}
	return name + "." + network // no network's name has a dot
}

// kinds is what a kind is compared with: one costs less than a set.
func (g Guard) kinds() string {
	kinds := cmp.Or(g.Kinds, `"vxlan"`)
	if strings.Contains(kinds, ",") {
		return "{ " + kinds + " }"
	}
	return kinds
}

// family is a Range, and how nft speaks of its family.
type family struct {
	Range
	ip    string
	group string // the addresses of groups, multicast and broadcast
	peers string // the set of their addresses
}

func (g Guard) ranges() (all []family) {
	for _, r := range g.Ranges {
		switch {
		case !r.Network.IsValid():
		case r.Network.Addr().Is4():
			r.Local = cmp.Or(r.Local, "0.0.0.0") // nft knows no empty set
			all = append(all, family{r, "ip", "224.0.0.0/3", "peers4"})
		default:
			r.Local = cmp.Or(r.Local, "::")
			all = append(all, family{r, "ip6", "ff00::/8", "peers6"})
		}
	}
	return all
}

// rules are those of one chain.
type rules struct {
	name  string
	rules []string
}

func chain(name string) *rules { return &rules{name: name} }

func (c *rules) add(words ...string) {
	c.rules = append(c.rules, fmt.Sprintf("add rule inet overlayd %s %s", c.name, strings.Join(words, " ")))
}

func drop(counter string) string { return "counter name " + counter + " drop" }

// In is the element in the set of a network's guard.
func (e Element) In(network string) Element {
	e.Set.Name = ownName(network, e.Set.Name)
	return e
}

// Peer is the element for an address that a peer sends vxlan from. It, and the next, are the unnamed network's: see [Element.In].
func Peer(ip netip.Addr) Element {
	if ip.Is4() {
		return Element{guardSet("peers4"), string(ip.AsSlice())}
	}
	return Element{guardSet("peers6"), string(ip.AsSlice())}
}

// Port is the element for a UDP port at which the host receives vxlan.
func Port(port uint16) Element {
	return Element{guardSet("ports"), string(binary.BigEndian.AppendUint16(nil, port))}
}

// Link is the element for an overlay link.
func Link(name string) Element { return Element{guardSet("links"), linkKey(name)} }

// Near is the element for a link by which peers send without a tunnel.
func Near(link string) Element { return Element{guardSet("near"), linkKey(link)} }

func linkKey(name string) string {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return string(key)
}

func guardSet(name string) Set { return Set{unix.NFPROTO_INET, name} }

// String is the command that adds an element of the guard's.
func (e Element) String() string {
	key := fmt.Sprintf("%q", strings.TrimRight(e.Key, "\x00"))
	switch kind, _, _ := strings.Cut(e.Set.Name, "."); kind {
	case "peers4", "peers6":
		ip, _ := netip.AddrFromSlice([]byte(e.Key))
		key = ip.String()
	case "ports":
		key = fmt.Sprint(binary.BigEndian.Uint16([]byte(e.Key)))
	}
	return shell([]string{fmt.Sprintf("add element inet %s %s { %s }", tableName, e.Set.Name, key)})
}
