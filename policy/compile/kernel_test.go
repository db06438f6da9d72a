package compile_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/policy/compile"
)

// kernel has what changes have put into it, and is as particular as a real one: what is added must not be there, what is removed
// must be.
type kernel struct {
	groups map[compile.GroupID]map[compile.Match]bool
	local  map[netip.Addr]compile.Sides
	gone   map[compile.GroupID]bool
}

func newKernel() *kernel {
	return &kernel{map[compile.GroupID]map[compile.Match]bool{}, map[netip.Addr]compile.Sides{}, map[compile.GroupID]bool{}}
}

func (k *kernel) apply(t testing.TB, c compile.Change) {
	t.Helper()
	for id, matches := range c.Make {
		if k.groups[id] != nil || k.gone[id] {
			t.Errorf("%s is made, and was there before", id)
		}
		k.groups[id] = map[compile.Match]bool{}
		k.add(t, id, matches)
	}
	for id, matches := range c.Remove {
		for _, m := range matches {
			if !k.groups[id][m] {
				t.Errorf("%s has no %v to remove", id, m)
			}
			delete(k.groups[id], m)
		}
	}
	for id, matches := range c.Add {
		if k.groups[id] == nil || c.Make[id] != nil {
			t.Errorf("%v is added to %s, which is not there", matches, id)
			continue
		}
		k.add(t, id, matches)
	}
	for a, s := range c.Set {
		if had, ok := k.local[a]; ok && had == s {
			t.Errorf("%s is set to what it has, %v", a, s)
		}
		k.local[a] = s
	}
	for _, a := range c.Gone {
		if _, ok := k.local[a]; !ok {
			t.Errorf("%s is gone, and was not there", a)
		}
		delete(k.local, a)
	}
	for _, id := range c.Drop {
		if k.groups[id] == nil {
			t.Errorf("%s is dropped, and is not there", id)
		}
		delete(k.groups, id)
		k.gone[id] = true
	}
	k.check(t)
}

func (k *kernel) add(t testing.TB, id compile.GroupID, matches []compile.Match) {
	for _, m := range matches {
		if k.groups[id][m] {
			t.Errorf("%s has %v already", id, m)
		}
		k.groups[id][m] = true
	}
}

// check finds addresses in groups that are not there, groups that nobody is in, and ranges of a set that overlap.
func (k *kernel) check(t testing.TB) {
	t.Helper()
	used := map[compile.GroupID]bool{"": true}
	for a, s := range k.local {
		if s.In != "" && k.groups[s.In] == nil || s.Out != "" && k.groups[s.Out] == nil {
			t.Errorf("%s is in %v, which are not there", a, s)
		}
		used[s.In], used[s.Out] = true, true
	}
	for id, matches := range k.groups {
		var ranges []compile.Match
		for m := range matches {
			if m.From != m.To {
				ranges = append(ranges, m)
			}
		}
		sort.Slice(ranges, func(i, j int) bool { return ranges[i].From.Less(ranges[j].From) })
		for i, m := range ranges {
			for _, o := range ranges[i+1:] {
				if m.Proto == o.Proto && m.First == o.First && m.Last == o.Last && !m.To.Less(o.From) {
					t.Errorf("%s has %v and %v, which overlap", id, m, o)
				}
			}
		}
	}
}

func (k *kernel) passes(id compile.GroupID, peer netip.Addr, proto uint8, port uint16) bool {
	for m := range k.groups[id] {
		if m.From.IsValid() && (peer.BitLen() != m.From.BitLen() || peer.Less(m.From) || m.To.Less(peer)) {
			continue
		}
		if m.Proto == 0 || m.Proto == proto && (m.First == 0 || m.First <= port && port <= m.Last) {
			return true
		}
	}
	return false
}

func (k *kernel) allowed(src, dst netip.Addr, proto uint8, port uint16) bool {
	if src == dst {
		return true
	}
	out, in := k.local[src].Out, k.local[dst].In
	return (out == "" || k.passes(out, dst, proto, port)) && (in == "" || k.passes(in, src, proto, port))
}

// text is all that the kernel has, without the names of groups: for each local address what passes.
func (k *kernel) text() string {
	var lines []string
	for a, s := range k.local {
		lines = append(lines, a.String()+"\n  in "+k.groupText(s.In)+"\n  out "+k.groupText(s.Out)+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func (k *kernel) groupText(id compile.GroupID) string {
	if id == "" {
		return "open"
	}
	var lines []string
	for m := range k.groups[id] {
		lines = append(lines, "\n    "+matchText(m))
	}
	slices.Sort(lines)
	return "isolated" + strings.Join(lines, "")
}

func matchText(m compile.Match) string {
	who := "everybody"
	if m.From.IsValid() {
		if who = m.From.String(); m.From != m.To {
			who += "-" + m.To.String()
		}
	}
	proto := map[uint8]string{0: "everything", 6: "tcp", 17: "udp", 132: "sctp"}[m.Proto]
	if m.First == 0 {
		return who + " " + proto
	}
	if m.First == m.Last {
		return fmt.Sprintf("%s %s %d", who, proto, m.First)
	}
	return fmt.Sprintf("%s %s %d-%d", who, proto, m.First, m.Last)
}
