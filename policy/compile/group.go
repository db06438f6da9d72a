package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"
)

// group is the local endpoints that the same policies isolate in one direction, with the same numbers for the names of ports.
type group struct {
	id       GroupID
	key      string
	dir      direction
	policies []string // by their keys; none: a default
	own      []namedPort
	allow    map[allowance]int // how often policies have it; by no name if of ingress
	anyone   []ports           // those of allow that are for everybody
	blocks   map[ports]*netipx.IPSet
	single   map[Match]bool // single addresses of blocks
	classes  int            // that are in it
	fresh    bool           // since the last Flush
	dropped  bool
}

// side returns the group in which a class's local endpoints are; nil: nothing isolates them.
func (c *Compiler) side(cl *class, d direction, selecting []*compiled) *group {
	var keys []string
	var own []namedPort
	for _, p := range selecting {
		if !p.isolates[d] {
			continue
		}
		keys = append(keys, p.key)
		for _, a := range p.allows[d] {
			if a.name != "" && d == in {
				own = appendOwn(own, cl.ports, a)
			}
		}
	}
	if len(keys) == 0 && !c.denies(cl.ns) {
		return nil
	}
	slices.SortFunc(own, comparePorts)
	own = slices.Compact(own)
	var key strings.Builder
	key.WriteString("ie"[d : d+1])
	for _, k := range keys {
		key.WriteString(" " + k)
	}
	for _, p := range own {
		key.WriteString(" " + p.name + ":" + strconv.Itoa(int(p.port)) + ":" + strconv.Itoa(int(p.proto)))
	}
	if g := c.groups[key.String()]; g != nil {
		return g
	}
	c.made++
	g := &group{key: key.String(), dir: d, policies: keys, own: own, allow: map[allowance]int{}, fresh: true}
	g.id = GroupID("ie"[d:d+1] + strconv.FormatUint(c.made, 36))
	c.groups[g.key] = g
	return g
}

// appendOwn appends those of an endpoint's ports that an allowance names.
func appendOwn(to, ports []namedPort, a allowance) []namedPort {
	for _, p := range ports {
		if p.name == a.name && p.proto == a.ports.proto {
			to = append(to, p)
		}
	}
	return to
}

// allowances are what the policies of a group allow more often than it knows, or less often: of one that is there by what replaced
// policies, else all.
func (c *Compiler) allowances(g *group, changed replaced) map[allowance]int {
	delta := map[allowance]int{}
	for _, key := range g.policies {
		was, ok := changed[key]
		if ok && !g.fresh {
			g.give(delta, was, -1)
		}
		if ok || g.fresh {
			g.give(delta, c.policies[key], 1)
		}
	}
	return delta
}

// give adds to delta, n times, what a policy allows in a group.
func (g *group) give(delta map[allowance]int, r *compiled, n int) {
	for _, a := range r.allows[g.dir] {
		if a.name == "" || g.dir == out {
			delta[a] += n
			continue
		}
		for _, p := range appendOwn(nil, g.own, a) {
			delta[allowance{term: a.term, block: a.block, ports: ports{p.proto, p.port, p.port}}] += n
		}
	}
}

// merge joins the blocks that a group allows for the same ports.
func merge(allow map[allowance]int) map[ports]*netipx.IPSet {
	builders := map[ports]*netipx.IPSetBuilder{}
	for a := range allow {
		if a.block == nil || a.term != nil {
			continue
		}
		if builders[a.ports] == nil {
			builders[a.ports] = new(netipx.IPSetBuilder)
		}
		builders[a.ports].AddSet(a.block.set)
	}
	sets := map[ports]*netipx.IPSet{}
	for p, b := range builders {
		sets[p], _ = b.IPSet() // Errors are of what was added, and sets have none.
	}
	return sets
}

// ranges calls f with each range of a group's blocks.
func ranges(blocks map[ports]*netipx.IPSet, f func(Match)) {
	for p, set := range blocks {
		for _, r := range set.Ranges() {
			f(p.match(r.From(), r.To()))
		}
	}
}

func (p ports) match(from, to netip.Addr) Match {
	return Match{From: from, To: to, Proto: p.proto, First: p.first, Last: p.last}
}

// setBlocks replaces a group's blocks.
func (g *group) setBlocks(blocks map[ports]*netipx.IPSet) {
	g.blocks, g.single = blocks, map[Match]bool{}
	ranges(blocks, func(m Match) {
		if m.From == m.To {
			g.single[m] = true
		}
	})
}

// open says whether a group lets everything pass, so that it denies nothing.
func (g *group) open() bool {
	_, ok := g.allow[allowance{}]
	return ok
}

// contains says whether a group allows all that another does, as far as that is to be seen without looking at endpoints.
func (g *group) contains(o *group) bool {
	if g.open() {
		return true
	}
	for a := range o.allow {
		if _, ok := g.allow[a]; !ok {
			return false
		}
	}
	return true
}

// appendPorts appends what allowances of a term give an address of a class.
func appendPorts(to []ports, uses []allowance, cl *class, a addr) []ports {
	for _, u := range uses {
		if u.block != nil && !u.block.set.Contains(a.ip()) {
			continue
		}
		if u.name == "" {
			to = append(to, u.ports)
			continue
		}
		for _, p := range appendOwn(nil, cl.ports, u) {
			to = append(to, ports{p.proto, p.port, p.port})
		}
	}
	return to
}

// reached appends what a group lets pass of an address of a class, by terms: each once.
func (g *group) reached(to []ports, cl *class, a addr) []ports {
	if cl == nil {
		return to
	}
	for _, t := range cl.terms {
		if uses := t.uses[g]; uses != nil {
			to = appendPorts(to, uses, cl, a)
		}
	}
	return unique(to, comparePort)
}

func comparePort(a, b ports) int {
	return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.first, b.first), cmp.Compare(a.last, b.last))
}

func unique[T comparable](s []T, compare func(a, b T) int) []T {
	if len(s) < 2 {
		return s
	}
	slices.SortFunc(s, compare)
	return slices.Compact(s)
}

// matches is all that a group lets pass.
func (c *Compiler) matches(g *group) []Match {
	var all []Match
	classes := map[*class]bool{}
	for a := range g.allow {
		switch {
		case a.term != nil:
			for cl := range a.term.classes {
				classes[cl] = true
			}
		case a.block == nil:
			all = append(all, a.ports.match(netip.Addr{}, netip.Addr{}))
		}
	}
	ranges(g.blocks, func(m Match) { all = append(all, m) })
	var reached []ports
	for cl := range classes {
		c.owned(cl, func(_ *endpoint, a addr) {
			reached = g.reached(reached[:0], cl, a)
			for _, p := range reached {
				if m := p.match(a.ip(), a.ip()); !g.single[m] {
					all = append(all, m)
				}
			}
		})
	}
	return all
}
