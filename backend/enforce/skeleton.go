package enforce

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// policyTable is what policies are in.
var policyTable = rtnl.Table{Family: unix.NFPROTO_INET, Name: "overlayd_policy"}

const (
	// priority is that of our chains: after conntrack and DNAT, before those of the firewall's, for which a drop is one less.
	priority = -5
	// cutLasts is how long a packet of a connection that was cut is known as such, since the last one: longer than TCP takes
	// between two of its tries (TCP_RTO_MAX, 120 s).
	cutLasts = 5 * time.Minute
)

// What is told of dropped packets: so many a second, to the group, and so many bytes of each.
const (
	logGroup = 9418
	logRate  = 20
	logBurst = 50
	logSnap  = 128
)

// The counters, and chains that end with a drop, of the same names; they are the prefixes of what is logged, too.
const (
	deniedIn  = "denied-in"
	deniedOut = "denied-out"
	cut       = "cut"
)

// denied is the chain in which a group's ends, by the first letter of its id.
var denied = map[byte]string{'i': deniedIn, 'e': deniedOut}

var families = []byte{4, 6}

func family(a netip.Addr) byte {
	if a.Is4() {
		return 4
	}
	return 6
}

// per is the name of a set of a family.
func per(name string, family byte) string { return name + string('0'+family) }

// skeleton adds what is always there. What is established passes first, for a cost that does not grow. Who asks whether a new
// connection may pass asks the group of its source first, whose chain returns here if it may, and then that of its destination.
// In the hook of what is for this host the destination is in no map.
func (x *transaction) skeleton(on Options, counted map[string]uint64) {
	for _, name := range []string{deniedIn, deniedOut, cut} {
		x.counter(name, counted[name])
		x.chain(name)
	}
	for _, name := range []string{deniedIn, deniedOut} {
		if on.LogDenied {
			x.rule(name, false, log(name))
		}
		x.rule(name, false, count(name), verdict(drop, ""))
	}
	x.chain("new")
	x.rule("new", false, nd())
	for _, f := range families {
		src, dst := source(f), destination(f)
		x.set(per("self", f), 0, src, dst)
		x.set(per("cut", f), unix.NFT_SET_TIMEOUT|unix.NFT_SET_EVAL, cutKey(f)...)
		x.set(per("egress", f), unix.NFT_SET_MAP, src)
		x.set(per("ingress", f), unix.NFT_SET_MAP, dst)
		x.rule("new", false, in(per("self", f), src, dst), verdict(accept, ""))
		x.rule("new", false, in(per("cut", f), cutKey(f)...), verdict(unix.NFT_GOTO, cut))
		x.rule(cut, false, refresh(per("cut", f), cutKey(f)...))
	}
	x.rule(cut, false, count(cut), verdict(drop, ""))
	for _, f := range families {
		x.rule("new", false, vmap(per("egress", f), source(f)))
	}
	for _, f := range families {
		x.rule("new", false, vmap(per("ingress", f), destination(f)))
	}
	for name, hook := range map[string]uint32{"forward": unix.NF_INET_FORWARD, "input": unix.NF_INET_LOCAL_IN} {
		x.hook(name, hook, priority)
		x.rule(name, false, state(established|related), verdict(accept, ""))
		x.rule(name, false, verdict(unix.NFT_GOTO, "new"))
	}
}

// nd lets pass what finds neighbours and routers: with br_netfilter, that is seen here too.
func nd() expr {
	icmpType := field{size: 1, base: unix.NFT_PAYLOAD_TRANSPORT_HEADER}
	return all(is(nfproto, unix.NFPROTO_IPV6), is(l4proto, unix.IPPROTO_ICMPV6), between(icmpType, []byte{133}, []byte{137}), verdict(accept, ""))
}

// cutKey is what is known of a connection that was cut.
func cutKey(family byte) []field {
	return []field{source(family), destination(family), l4proto, sport, dport}
}
