package firewall

import (
	"fmt"
	"net/netip"
)

// Apart has nothing of some networks reach others on this host: neither what has an address of From, nor what comes by links of
// From's. A host of many networks has one for each, and not for each two: every packet that is forwarded meets them all.
type Apart struct {
	Six                bool   // the ranges are of IPv6
	From, To           string // ranges, with ", " between them
	FromLinks, ToLinks string // in quotes, with ", " between them; "": there are none
}

func (Apart) place() string    { return "inet" }
func (a Apart) String() string { return shell(a.nft()) }

// nft implements ruled. What is forwarded is looked at before anybody's rules for it, and before anything is masqueraded.
func (a Apart) nft() []string {
	family := "ip"
	if a.Six {
		family = "ip6"
	}
	lines := []string{
		"add chain inet overlayd apart { type filter hook forward priority -300; }",
		"add counter inet overlayd apart",
		fmt.Sprintf("add rule inet overlayd apart %[1]s saddr { %[2]s } %[1]s daddr { %[3]s } %[4]s", family, a.From, a.To, drop("apart")),
	}
	if a.FromLinks != "" && a.ToLinks != "" {
		lines = append(lines, fmt.Sprintf("add rule inet overlayd apart iifname { %s } oifname { %s } %s", a.FromLinks, a.ToLinks, drop("apart")))
	}
	return lines
}

// Across hides what goes from one network to another that it is peered with behind this host's address there: the other's hosts,
// whose tunnels and guards know no other network, answer to that.
type Across struct{ From, To netip.Prefix }

func (Across) place() string    { return "inet" }
func (a Across) String() string { return shell(a.nft()) }

// nft implements ruled.
func (a Across) nft() []string {
	return []string{
		"add chain inet overlayd postrouting { type nat hook postrouting priority srcnat; }",
		fmt.Sprintf("add rule inet overlayd postrouting %[1]s saddr %[2]s %[1]s daddr %[3]s masquerade fully-random", ip(a.From), a.From, a.To),
	}
}

// Through lets that be forwarded also where iptables' FORWARD policy is DROP.
type Through struct{ From, To netip.Prefix }

func (t Through) place() string  { return iptablesOf(t.From) }
func (t Through) String() string { return commands(t) }

// lines implements forwarded.
func (t Through) lines() []string {
	return accept("-s " + t.From.Masked().String() + " -d " + t.To.Masked().String())
}

func ip(p netip.Prefix) string {
	if p.Addr().Is6() {
		return "ip6"
	}
	return "ip"
}
