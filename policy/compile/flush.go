package compile

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/policy"
)

// Flush returns what has changed since the last Flush. Each step leaves things as if the kernel had what it has added to delta.
func (c *Compiler) Flush() Change {
	c.admit()
	c.move()
	c.sweep()
	c.describe()
	changed := c.replacePolicies()
	moved := c.regroupClasses()
	c.regroupPolicies(changed)
	change := c.change(moved)
	c.pending = newPending()
	return change
}

// Full returns everything, as Make and Set, for a kernel that has nothing; as of the last Flush.
func (c *Compiler) Full() Change {
	change := Change{Make: map[GroupID][]Match{}, Set: map[netip.Addr]Sides{}}
	for _, g := range c.groups {
		change.Make[g.id] = c.matches(g)
	}
	c.held = false
	for a, s := range c.local {
		change.Set[a.ip()] = s.ids()
	}
	return change
}

// count says that a group gains (n is 1) or loses (-1) a match.
func (c *Compiler) count(g *group, m Match, n int8) {
	if g.fresh || c.held {
		return // It is made with all that it has in the end.
	}
	delta := c.delta[g]
	if delta == nil {
		delta = map[Match]int8{}
		c.delta[g] = delta
	}
	if delta[m] += n; delta[m] == 0 {
		delete(delta, m)
	}
}

// countReached says that a group gains or loses what it lets pass of an address.
func (c *Compiler) countReached(g *group, cl *class, a addr, n int8) {
	var room [8]ports
	for _, p := range g.reached(room[:0], cl, a) {
		if m := p.match(a.ip(), a.ip()); !g.single[m] {
			c.count(g, m, n)
		}
	}
}

// countAll does that for each group that lets something of the address pass.
func (c *Compiler) countAll(cl *class, a addr, n int8) {
	var room [16]*group
	groups := room[:0]
	for _, t := range cl.terms {
		for g := range t.uses {
			groups = append(groups, g)
		}
	}
	for _, g := range unique(groups, func(a, b *group) int { return strings.Compare(string(a.id), string(b.id)) }) {
		c.countReached(g, cl, a, n)
	}
}

// admit lets new classes have the terms in use that mean them.
func (c *Compiler) admit() {
	var labels []label
	for _, cl := range c.fresh {
		labels = decode(labels[:0], cl.labels)
		c.index.visit(cl.ns, labels, func(t *term) {
			if t.active() {
				attach(cl, t)
			}
		})
	}
}

// move lets addresses that are another endpoint's by now have what that has.
func (c *Compiler) move() {
	for a, was := range c.touched {
		var is *class
		if o := c.owner(a); o != nil {
			is = o.class
		}
		if was == is {
			continue
		}
		if was != nil {
			c.countAll(was, a, -1)
		}
		if is != nil {
			c.countAll(is, a, 1)
		}
	}
}

// sweep forgets classes that nobody is in, and namespaces of which nothing is known.
func (c *Compiler) sweep() {
	for cl := range c.empty {
		if len(cl.members) > 0 {
			continue
		}
		for _, t := range cl.terms {
			delete(t.classes, cl)
		}
		delete(c.classes, cl.key)
		delete(cl.ns.classes, cl)
		c.forget(cl.ns)
	}
}

func (c *Compiler) forget(ns *namespace) {
	if !ns.known && len(ns.classes) == 0 {
		delete(c.namespaces, ns.name)
	}
}

// describe lets namespaces have the labels and defaults that have been said, and their classes the terms that mean them then.
func (c *Compiler) describe() {
	if c.pending.def != nil && *c.pending.def != c.def {
		c.def = *c.pending.def
		maps.Copy(c.regroup, c.locals)
	}
	for name, said := range c.pending.namespaces {
		ns := c.namespace(name)
		ns.known = said != nil
		if said == nil {
			said = new(policy.Namespace)
		}
		if ns.def != said.Default {
			ns.def = said.Default
			c.regroupNamespace(ns)
		}
		labels := namespaceLabels(name, said.Labels)
		if !slices.Equal(ns.labels, labels) {
			ns.labels = labels
			for cl := range ns.classes {
				c.judgeAgain(cl)
			}
		}
		c.forget(ns)
	}
}

func (c *Compiler) regroupNamespace(ns *namespace) {
	for cl := range ns.classes {
		if cl.local > 0 {
			c.regroup[cl] = true
		}
	}
}

// judgeAgain lets a class have the terms that mean it by now.
func (c *Compiler) judgeAgain(cl *class) {
	var now []*term
	c.index.visit(cl.ns, decode(nil, cl.labels), func(t *term) {
		if t.active() {
			now = append(now, t)
		}
	})
	slices.SortFunc(now, compareTerms)
	slices.SortFunc(cl.terms, compareTerms)
	if slices.Equal(now, cl.terms) {
		return
	}
	c.owned(cl, func(_ *endpoint, a addr) { c.countAll(cl, a, -1) })
	for _, t := range slices.Clone(cl.terms) {
		detach(cl, t)
	}
	for _, t := range now {
		attach(cl, t)
	}
	c.owned(cl, func(_ *endpoint, a addr) { c.countAll(cl, a, 1) })
}
