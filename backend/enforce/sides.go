package enforce

import (
	"iter"
	"net/netip"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/policy/compile"
)

// sides changes what group addresses are in. The kernel lets no element lead elsewhere: it is removed and added. Groups are nil
// where all are to be denied.
func (x *transaction) sides(before, after map[netip.Addr]compile.Sides, groups map[compile.GroupID]group) {
	in := func(s compile.Sides) compile.GroupID { return s.In }
	out := func(s compile.Sides) compile.GroupID { return s.Out }
	for _, f := range families {
		for _, side := range []struct {
			set, closed string
			of          func(compile.Sides) compile.GroupID
			chain       func(compile.GroupID) string
		}{
			{"ingress", deniedIn, in, chainOf}, {"egress", deniedOut, out, chainOf},
			{"answers-in", deniedIn, in, answersOf}, {"answers-out", deniedOut, out, answersOf},
		} {
			to := func(s compile.Sides) string {
				switch id := side.of(s); {
				case id == "":
					return ""
				case groups == nil:
					return side.closed
				default:
					return side.chain(id)
				}
			}
			x.move(per(side.set, f), f, before, after, to, netip.Addr.AsSlice)
		}
		self := func(s compile.Sides) string { // no verdict, but it is there or not
			if s == (compile.Sides{}) {
				return ""
			}
			return here
		}
		x.move(per("self", f), f, before, after, self, func(a netip.Addr) []byte { return append(a.AsSlice(), a.AsSlice()...) })
	}
}

// here is for move what is in a set that is no map.
const here = "\x00"

// move brings the elements of a set from where they led to where they are to lead.
func (x *transaction) move(set string, f byte, before, after map[netip.Addr]compile.Sides, to func(compile.Sides) string,
	key func(netip.Addr) []byte) {
	changed := func(have, than map[netip.Addr]compile.Sides) iter.Seq[rtnl.Element] {
		return func(yield func(rtnl.Element) bool) {
			for a, s := range have {
				e := rtnl.Element{Key: string(key(a)), Jump: to(s)}
				if family(a) != f || e.Jump == "" || e.Jump == to(than[a]) {
					continue
				}
				if e.Jump == here {
					e.Jump = ""
				}
				if !yield(e) {
					return
				}
			}
		}
	}
	x.remove(set, changed(before, after))
	x.add(set, changed(after, before))
}
