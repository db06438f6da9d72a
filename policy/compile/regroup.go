package compile

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// replaced are policies that have been, by key: what replaces them holds what it needs already.
type replaced map[string]*compiled

// replacePolicies puts policies in place of others, and says which changed; nil: there was none.
func (c *Compiler) replacePolicies() replaced {
	was := replaced{}
	targets := map[*term]bool{}
	for key, p := range c.pending.policies {
		old := c.policies[key]
		was[key] = old
		if p == nil {
			delete(c.policies, key)
		} else {
			c.policies[key] = c.compile(key, p)
		}
		if now := c.policies[key]; !now.groupsAs(old) {
			for _, r := range []*compiled{old, now} {
				if r != nil {
					targets[r.target] = true
				}
			}
		}
	}
	c.regroupSelected(targets)
	return was
}

// groupsAs says whether a policy in place of another leaves everybody in the same groups, as far as that is to be seen at once.
func (r *compiled) groupsAs(old *compiled) bool {
	named := func(a allowance) bool { return a.name != "" }
	return r != nil && old != nil && r.target == old.target && r.isolates == old.isolates &&
		!slices.ContainsFunc(r.allows[in], named) && !slices.ContainsFunc(old.allows[in], named)
}

// regroupSelected has the groups found again of what policies isolate, or have isolated.
func (c *Compiler) regroupSelected(targets map[*term]bool) {
	if len(targets) == 0 {
		return
	}
	var labels []label
	for cl := range c.locals {
		labels = decode(labels[:0], cl.labels)
		for t := range targets {
			if t.selects(cl.ns, labels) {
				c.regroup[cl] = true
				break
			}
		}
	}
}

// regroupClasses finds the groups of classes that may be in others by now, and says which are.
func (c *Compiler) regroupClasses() (moved map[*class]bool) {
	moved = map[*class]bool{}
	var labels []label
	for cl := range c.regroup {
		var now sides
		if cl.local > 0 {
			c.locals[cl] = true
			labels = decode(labels[:0], cl.labels)
			now = c.sidesOf(cl, labels)
		} else {
			delete(c.locals, cl)
		}
		for d, g := range now {
			old := cl.sides[d]
			if g == old {
				continue
			}
			moved[cl] = true
			if g != nil {
				g.classes++
			}
			if old != nil {
				old.classes--
			}
			cl.sides[d] = g
		}
	}
	return moved
}

func (c *Compiler) sidesOf(cl *class, labels []label) sides {
	var selecting []*compiled
	c.index.visit(cl.ns, labels, func(t *term) {
		for _, p := range t.targets {
			if c.policies[p.key] == p { // It may be one that was replaced.
				selecting = append(selecting, p)
			}
		}
	})
	slices.SortFunc(selecting, func(a, b *compiled) int { return strings.Compare(a.key, b.key) })
	return sides{c.side(cl, in, selecting), c.side(cl, out, selecting)}
}

// regroupPolicies lets groups have what their policies allow by now, and forgets what nobody is in or needs any more.
func (c *Compiler) regroupPolicies(changed replaced) {
	left := map[*term]bool{}               // by a group
	next := map[*group]map[allowance]int{} // what they allow more or less often
	for key, g := range c.groups {
		if g.classes == 0 {
			g.dropped = true
			delete(c.groups, key)
			if !g.fresh {
				c.drop = append(c.drop, g.id)
			}
			for a := range g.allow {
				if a.term != nil {
					delete(a.term.uses, g)
					left[a.term] = true
				}
			}
		} else if delta := c.allowances(g, changed); g.fresh || len(delta) > 0 {
			next[g] = delta
		}
	}
	c.activate(next)
	for g, delta := range next {
		if g.fresh {
			g.use(delta)
			g.setBlocks(merge(g.allow))
		} else {
			c.adjust(g, delta, left)
		}
	}
	for t := range left {
		if len(t.uses) == 0 {
			t.deactivate()
		}
	}
	for _, r := range changed {
		if r != nil {
			c.letGo(r)
		}
	}
}

// activate lets classes have those terms that groups will use and that none has used before.
func (c *Compiler) activate(next map[*group]map[allowance]int) {
	fresh := index{}
	namespaces := map[string]*namespace{} // whose classes they can mean
	for _, delta := range next {
		for a, n := range delta {
			if n <= 0 || a.term == nil || a.term.active() {
				continue
			}
			a.term.uses, a.term.classes = map[*group][]allowance{}, map[*class]bool{}
			fresh.put(a.term)
			if a.term.spaces != nil {
				maps.Copy(namespaces, c.namespaces)
			} else if ns := c.namespaces[a.term.in]; ns != nil {
				namespaces[ns.name] = ns
			}
		}
	}
	if len(fresh) == 0 {
		return
	}
	var labels []label
	for _, ns := range namespaces {
		for cl := range ns.classes {
			labels = decode(labels[:0], cl.labels)
			fresh.visit(ns, labels, func(t *term) { attach(cl, t) })
		}
	}
}

func (t *term) deactivate() {
	for cl := range t.classes {
		cl.terms = slices.DeleteFunc(cl.terms, func(o *term) bool { return o == t })
	}
	t.uses, t.classes = nil, nil
}

// use lets a group allow things more or less often, as terms have it too.
func (g *group) use(delta map[allowance]int) {
	for a, n := range delta {
		was := g.allow[a]
		if g.allow[a] += n; was+n == 0 {
			delete(g.allow, a)
		}
		switch gains := was == 0; {
		case gains == (was+n == 0): // neither the first nor the last
		case a.term != nil && gains:
			a.term.uses[g] = append(a.term.uses[g], a)
		case a.term != nil:
			if a.term.uses[g] = slices.DeleteFunc(a.term.uses[g], func(o allowance) bool { return o == a }); len(a.term.uses[g]) == 0 {
				delete(a.term.uses, g)
			}
		case a.block == nil && gains:
			g.anyone = append(g.anyone, a.ports)
		case a.block == nil:
			g.anyone = slices.DeleteFunc(g.anyone, func(p ports) bool { return p == a.ports })
		}
	}
}

// adjust lets a group allow something else, and counts what that changes. Terms that it does not need any more are left.
func (c *Compiler) adjust(g *group, delta map[allowance]int, left map[*term]bool) {
	classes := map[*class]bool{}
	blocks := false
	differs := func(a allowance, n int8) {
		switch {
		case a.term != nil:
			left[a.term] = true
			maps.Copy(classes, a.term.classes)
		case a.block != nil:
			blocks = true
		default:
			c.count(g, a.ports.match(netip.Addr{}, netip.Addr{}), n)
		}
	}
	for a, n := range delta {
		switch was := g.allow[a]; {
		case was > 0 && was+n == 0:
			differs(a, -1)
		case was == 0 && n > 0:
			differs(a, 1)
		}
	}
	count := func(n int8) {
		for cl := range classes {
			c.owned(cl, func(_ *endpoint, a addr) { c.countReached(g, cl, a, n) })
		}
		if blocks {
			ranges(g.blocks, func(m Match) { c.count(g, m, n) })
		}
	}
	next := g.blocks
	if blocks {
		all := maps.Clone(g.allow)
		for a, n := range delta {
			if all[a] += n; all[a] == 0 {
				delete(all, a)
			}
		}
		next = merge(all)
		// An address that is a block of its own, or no more, may be an endpoint's, which counts if the block does not.
		for _, sets := range []map[ports]*netipx.IPSet{g.blocks, next} {
			ranges(sets, func(m Match) {
				if o := c.owner(addrOf(m.From)); m.From == m.To && o != nil {
					classes[o.class] = true
				}
			})
		}
	}
	count(-1)
	g.use(delta)
	g.setBlocks(next)
	count(1)
}
