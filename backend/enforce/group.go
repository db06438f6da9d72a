package enforce

import (
	"encoding/binary"
	"fmt"
	"iter"
	"slices"

	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/policy/compile"
)

// A group is a chain, and one for answers (see skeleton), of one rule for each kind of match that it has had, whose set holds the
// matches: their number costs packets nothing. What is in none of them goes to the chain of denials. Rules and sets go with the
// group only.

// kind is what one set of a group can hold.
type kind struct {
	family byte // of addresses; 0: everybody
	// ranges are of addresses: the set is sorted, and its key nothing else. What protocol and ports they are for the rule says,
	// as it does of ranges of ports.
	ranges      bool
	proto       uint8
	first, last uint16
	// keyed is what the key has besides the address.
	keyed struct{ proto, port bool }
}

// kindOf is what set a match is in.
func kindOf(m compile.Match) (k kind) {
	if m.From.IsValid() {
		k.family, k.ranges = family(m.From), m.From != m.To
	}
	switch {
	case m.Proto == 0:
	case k.ranges || m.First != m.Last:
		k.proto, k.first, k.last = m.Proto, m.First, m.Last
	default:
		k.keyed.proto, k.keyed.port = true, m.First != 0
	}
	return k
}

// set is its name, of a group: e1-ip4-proto-port say, e1-ip4-tcp-80-90 or i2-net6.
func (k kind) set(id compile.GroupID) string {
	name := string(id)
	switch {
	case k.family == 0:
		name += "-any"
	case k.ranges:
		name += per("-net", k.family)
	default:
		name += per("-ip", k.family)
	}
	if k.keyed.proto {
		name += "-proto"
	}
	if k.keyed.port {
		name += "-port"
	}
	if k.proto != 0 {
		name += fmt.Sprintf("-%d", k.proto)
	}
	if k.first != 0 {
		name += fmt.Sprintf("-%d-%d", k.first, k.last)
	}
	return name
}

// fields are those of the key, in what is sent to the port or in what is answered. Everybody is everybody of a family.
func (k kind) fields(id compile.GroupID, answer bool) (all []field) {
	peer, port := source, dport
	if (id[0] == 'e') != answer {
		peer = destination
	}
	if answer {
		port = sport
	}
	if k.family != 0 {
		all = append(all, peer(k.family))
	}
	if k.keyed.proto {
		all = append(all, l4proto)
	}
	if k.keyed.port {
		all = append(all, port)
	}
	if len(all) == 0 {
		all = append(all, nfproto)
	}
	return all
}

// rule is what lets pass what the set holds. What may leave is not there yet.
func (k kind) rule(id compile.GroupID, answer bool) (parts []expr) {
	port := dport
	if answer {
		port = sport
	}
	if k.proto != 0 {
		parts = append(parts, is(l4proto, k.proto))
	}
	if k.first != 0 {
		parts = append(parts, between(port, binary.BigEndian.AppendUint16(nil, k.first), binary.BigEndian.AppendUint16(nil, k.last)))
	}
	parts = append(parts, in(k.set(id), k.fields(id, answer)...))
	if id[0] == 'e' {
		return append(parts, verdict(unix.NFT_RETURN, ""))
	}
	return append(parts, verdict(accept, ""))
}

// keys are the elements for a match that is of no range of addresses.
func (k kind) keys(m compile.Match) (all []rtnl.Element) {
	var key []byte
	if k.family != 0 {
		key = m.From.AsSlice()
	}
	if k.keyed.proto {
		key = append(key, m.Proto)
		if k.keyed.port || k.family != 0 {
			key = append(key, 0, 0, 0)
		}
	}
	if k.keyed.port {
		key = append(binary.BigEndian.AppendUint16(key, m.First), 0, 0)
	}
	if len(key) == 0 {
		for _, f := range families {
			all = append(all, rtnl.Element{Key: string(nfprotos[f])})
		}
		return all
	}
	return append(all, rtnl.Element{Key: string(key)})
}

// chainOf and answersOf are a group's chains.
func chainOf(id compile.GroupID) string   { return string(id) }
func answersOf(id compile.GroupID) string { return string(id) + "-" + answers }

// group is what is known of one: which sets it has, and of those of ranges what is in them.
type group map[kind]map[netipx.IPRange]struct{}

// make makes a group of matches.
func (x *transaction) make(id compile.GroupID, matches []compile.Match) group {
	g := group{}
	for _, chain := range []string{chainOf(id), answersOf(id)} {
		x.chain(chain)
		x.rule(chain, false, verdict(unix.NFT_GOTO, denied[id[0]]))
	}
	x.change(id, g, matches, nil)
	return g
}

// dropGroup removes one that no map leads to any more.
func (x *transaction) dropGroup(id compile.GroupID, g group) {
	for _, chain := range []string{chainOf(id), answersOf(id)} {
		x.drop(unix.NFT_MSG_DELRULE, unix.NFTA_RULE_CHAIN, chain) // all of them
		x.drop(unix.NFT_MSG_DELCHAIN, unix.NFTA_CHAIN_NAME, chain)
	}
	for k := range g {
		x.drop(unix.NFT_MSG_DELSET, unix.NFTA_SET_NAME, k.set(id))
	}
}

// change removes matches from a group, and adds others.
func (x *transaction) change(id compile.GroupID, g group, add, remove []compile.Match) {
	added, removed := byKind(add), byKind(remove)
	for k, matches := range removed {
		if !k.ranges {
			x.remove(k.set(id), k.elements(matches))
		}
	}
	for k, matches := range added {
		if _, there := g[k]; !there {
			var flags uint32
			if g[k] = nil; k.ranges {
				flags, g[k] = unix.NFT_SET_INTERVAL, map[netipx.IPRange]struct{}{}
			}
			x.set(k.set(id), flags, k.fields(id, false)...)
			x.rule(chainOf(id), true, k.rule(id, false)...)
			x.rule(answersOf(id), true, k.rule(id, true)...)
		}
		if !k.ranges {
			x.add(k.set(id), k.elements(matches))
		}
	}
	for k, ranges := range g {
		if k.ranges && len(added[k])+len(removed[k]) > 0 {
			x.changeRanges(k.set(id), ranges, added[k], removed[k])
		}
	}
}

func byKind(matches []compile.Match) map[kind][]compile.Match {
	all := map[kind][]compile.Match{}
	for _, m := range matches {
		k := kindOf(m)
		all[k] = append(all[k], m)
	}
	return all
}

func (k kind) elements(matches []compile.Match) iter.Seq[rtnl.Element] {
	return func(yield func(rtnl.Element) bool) {
		for _, m := range matches {
			for _, e := range k.keys(m) {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// changeRanges changes a set of ranges, which may overlap: the kernel gets what they are together.
func (x *transaction) changeRanges(set string, ranges map[netipx.IPRange]struct{}, add, remove []compile.Match) {
	before := union(ranges)
	for _, m := range remove {
		delete(ranges, netipx.IPRangeFrom(m.From, m.To))
	}
	for _, m := range add {
		ranges[netipx.IPRangeFrom(m.From, m.To)] = struct{}{}
	}
	after := union(ranges)
	x.remove(set, ends(before, after))
	x.add(set, ends(after, before))
}

func union(ranges map[netipx.IPRange]struct{}) []netipx.IPRange {
	var b netipx.IPSetBuilder
	for r := range ranges {
		b.AddRange(r)
	}
	s, _ := b.IPSet() // fails for invalid ranges only, which no block gives
	return s.Ranges()
}

// ends are the elements for ranges but those of others: one where it begins, and one behind its end, if anything is.
func ends(ranges, without []netipx.IPRange) iter.Seq[rtnl.Element] {
	return func(yield func(rtnl.Element) bool) {
		for _, r := range ranges {
			if slices.Contains(without, r) {
				continue
			}
			if !yield(rtnl.Element{Key: string(r.From().AsSlice())}) {
				return
			}
			if next := r.To().Next(); next.IsValid() && !yield(rtnl.Element{Key: string(next.AsSlice()), End: true}) {
				return
			}
		}
	}
}
