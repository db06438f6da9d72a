package enforce

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// tableOf is what a network's policies are in; the unnamed one's is pending.PolicyTable.
func tableOf(network string) rtnl.Table {
	t := rtnl.Table{Family: unix.NFPROTO_INET, Name: pending.PolicyTable}
	if network != "" {
		t.Name += "." + network // no network's name has a dot
	}
	return t
}

const (
	// cutLasts is how long a packet of a connection that was cut is known as such, since the last one: longer than TCP takes
	// between two of its tries (TCP_RTO_MAX, 120 s).
	cutLasts = 5 * time.Minute
)

// Priorities of our chains. A table that takes another's place must be met after it: while the kernel changes from the one to
// the other a packet may find that one to be the past and this one the future, if it meets this one first. So each is one higher
// than the one before, from the first to the last; where they begin again, a packet may slip through. In these hooks nothing
// comes before (conntrack and DNAT are done in another), and to drop early is cheap.
const (
	firstPriority = -2_000_000
	lastPriority  = -1_000
)

// nextPriority is that of the chains of a table's next making.
func (t *Table) nextPriority(table rtnl.Table) (int32, error) {
	next := int32(firstPriority)
	t.batch.Reset()
	t.batch.BeginNft(unix.NFT_MSG_GETCHAIN, 0, table.Family)
	t.batch.AttrString(unix.NFTA_CHAIN_TABLE, table.Name)
	t.batch.AttrString(unix.NFTA_CHAIN_NAME, "forward")
	t.batch.End()
	err := t.conn.SetReadDeadline(time.Now().Add(within))
	if err != nil {
		return next, err
	}
	failed, err := t.conn.Exec(&t.batch, func(_ int, body []byte) {
		for _, hook := range rtnl.NftAttributes(body, unix.NFTA_CHAIN_HOOK) {
			for _, data := range rtnl.Nested(hook, unix.NFTA_HOOK_PRIORITY) {
				if now := int32(binary.BigEndian.Uint32(data)); now >= firstPriority && now < lastPriority {
					next = now + 1
				}
			}
		}
	})
	if err == nil && !errors.Is(failed[0], unix.ENOENT) {
		err = failed[0]
	}
	return next, err
}

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

// answers is the chain for what looks like an answer in a connection that conntrack does not know, because it is from before a
// bridge's traffic was tracked. It asks whether who opened it may have it. Each group has one, with its id before a hyphen.
const answers = "answers"

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
//
// The hooks come first, so that none of the packets that are on their way when the change is made knows of the hooks before only.
func (x *transaction) skeleton(on Options, counted map[string]uint64, priority int32) {
	x.hook("forward", unix.NF_INET_FORWARD, priority)
	x.hook("input", unix.NF_INET_LOCAL_IN, priority)
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
	x.chain(answers)
	x.chain(many)
	for _, chain := range []string{many, "new"} {
		x.rule(chain, false, neighbours(130, 137)) // MLD too: who listens to groups
		x.rule(chain, false, neighbours(143, 143))
	}
	x.rule(many, false, verdict(unix.NFT_GOTO, deniedIn))
	for _, f := range families {
		x.declare(f)
		x.rule("new", false, in(per("self", f), source(f), destination(f)), verdict(accept, ""))
		x.rule("new", false, in(per("cut", f), cutKey(f)...), verdict(unix.NFT_GOTO, cut))
		x.rule(cut, false, refresh(per("cut", f), cutKey(f)...))
	}
	x.rule(cut, false, count(cut), verdict(drop, ""))
	x.rule("new", false, answer(), verdict(unix.NFT_GOTO, answers))
	for _, f := range families {
		x.rule("new", false, vmap(per("egress", f), source(f)))
		x.rule(answers, false, vmap(per("answers-out", f), destination(f)))
	}
	for _, f := range families {
		x.rule("new", false, vmap(per("ingress", f), destination(f)))
		x.rule(answers, false, vmap(per("answers-in", f), source(f)))
	}
	for _, hook := range []string{"forward", "input"} {
		x.rule(hook, false, state(established|related), verdict(accept, ""))
		if hook == "forward" {
			for _, kind := range []byte{unix.PACKET_BROADCAST, unix.PACKET_MULTICAST} {
				x.rule(hook, false, is(pkttype, kind), is(iifkind, bridgeKind...), is(oifkind, bridgeKind...), verdict(unix.NFT_GOTO, many))
			}
		}
		x.rule(hook, false, verdict(unix.NFT_GOTO, "new"))
	}
}

// declare makes the sets of a family.
func (x *transaction) declare(f byte) {
	src, dst := source(f), destination(f)
	x.set(per("self", f), 0, src, dst)
	x.set(per("cut", f), unix.NFT_SET_TIMEOUT|unix.NFT_SET_EVAL, cutKey(f)...)
	x.set(per("egress", f), unix.NFT_SET_MAP, src)
	x.set(per("ingress", f), unix.NFT_SET_MAP, dst)
	x.set(per("answers-out", f), unix.NFT_SET_MAP, dst)
	x.set(per("answers-in", f), unix.NFT_SET_MAP, src)
}

// answer goes on for what looks like one: TCP but a connection's first packet, to a port that is chosen by who opens one, from
// another. It opens nothing, whoever made it up.
func answer() expr {
	flags := field{size: 1, base: unix.NFT_PAYLOAD_TRANSPORT_HEADER, offset: 13}
	last := []byte{0xff, 0xff}
	return all(is(l4proto, unix.IPPROTO_TCP), flags.load(register), masked(0x02), compare(unix.NFT_CMP_EQ, 0),
		between(sport, []byte{0, 0}, []byte{ephemeral>>8 - 1, 0xff}), between(dport, []byte{ephemeral >> 8, 0}, last))
}

// many is the chain of what a bridge floods to all its containers: it has no container's address, so no policy says who may
// have it.
const many = "many"

// bridgeKind is the kind of a bridge's link, as a name in the kernel. Who forwards by groups' addresses does it between links.
var bridgeKind = append([]byte("bridge"), make([]byte, unix.IFNAMSIZ-len("bridge"))...)

// neighbours lets types of ICMPv6 pass, by which neighbours, routers and groups are found: with br_netfilter, that is seen here too.
func neighbours(first, last byte) expr {
	icmpType := field{size: 1, base: unix.NFT_PAYLOAD_TRANSPORT_HEADER}
	return all(is(nfproto, unix.NFPROTO_IPV6), is(l4proto, unix.IPPROTO_ICMPV6), between(icmpType, []byte{first}, []byte{last}),
		verdict(accept, ""))
}

// cutKey is what is known of a connection that was cut.
func cutKey(family byte) []field {
	return []field{source(family), destination(family), l4proto, sport, dport}
}
