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
		for _, r := range []*compiled{old, c.policies[key]} {
			if r != nil {
				targets[r.target] = true
			}
		}
	}
	c.regroupSelected(targets)
	return was
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
	left := map[*term]bool{} // by a group
	next := map[*group]map[allowance]struct{}{}
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
		} else if g.fresh || len(changed) > 0 && g.of(changed) {
			next[g] = c.allowances(g)
		}
	}
	c.activate(next)
	for g, allow := range next {
		if g.fresh {
			g.use(allow)
			g.setBlocks(merge(allow))
		} else {
			c.adjust(g, allow, left)
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

func (g *group) of(changed replaced) bool {
	for _, key := range g.policies {
		if _, ok := changed[key]; ok {
			return true
		}
	}
	return false
}

// activate lets classes have those terms that groups will use and that none has used before.
func (c *Compiler) activate(next map[*group]map[allowance]struct{}) {
	fresh := index{}
	namespaces := map[string]*namespace{} // whose classes they can mean
	for _, allow := range next {
		for a := range allow {
			if a.term == nil || a.term.active() {
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

// use replaces what a group allows, as terms have it too.
func (g *group) use(allow map[allowance]struct{}) {
	for a := range g.allow {
		if a.term != nil {
			delete(a.term.uses, g)
		}
	}
	g.allow = allow
	for a := range allow {
		if a.term != nil {
			a.term.uses[g] = append(a.term.uses[g], a)
		}
	}
}

// adjust lets a group allow something else, and counts what that changes. Terms that it does not need any more are left.
func (c *Compiler) adjust(g *group, allow map[allowance]struct{}, left map[*term]bool) {
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
	for a := range g.allow {
		if _, ok := allow[a]; !ok {
			differs(a, -1)
		}
	}
	for a := range allow {
		if _, ok := g.allow[a]; !ok {
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
		next = merge(allow)
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
	g.use(allow)
	g.setBlocks(next)
	count(1)
}
