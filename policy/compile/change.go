package compile

import "net/netip"

func (s sides) ids() Sides {
	var ids Sides
	if s[in] != nil {
		ids.In = s[in].id
	}
	if s[out] != nil {
		ids.Out = s[out].id
	}
	return ids
}

// change is what a Flush has found, and what is local after it. Classes that moved are in other groups than before.
func (c *Compiler) change(moved map[*class]bool) Change {
	change := Change{
		Make: map[GroupID][]Match{}, Add: map[GroupID][]Match{}, Remove: map[GroupID][]Match{}, Drop: c.drop,
		Set: map[netip.Addr]Sides{},
	}
	narrower := narrowing{}
	for a := range c.touched {
		c.settle(a, &change, narrower)
	}
	for cl := range moved {
		c.owned(cl, func(e *endpoint, a addr) { c.settle(a, &change, narrower) })
	}
	for _, narrow := range narrower {
		change.Narrow = change.Narrow || narrow
	}
	for g, delta := range c.delta {
		for m, n := range delta {
			change.Narrow = change.Narrow || n < 0 && !g.open()
			switch {
			case g.dropped:
			case n < 0:
				change.Remove[g.id] = append(change.Remove[g.id], m)
			default:
				change.Add[g.id] = append(change.Add[g.id], m)
			}
		}
	}
	for _, g := range c.groups {
		if g.fresh && !c.held {
			change.Make[g.id] = c.matches(g)
		}
		g.fresh = false
	}
	c.isolated = 0
	for cl := range c.locals {
		if cl.sides != (sides{}) {
			c.isolated += cl.local
		}
	}
	return change
}

// narrowing says of moves from one group to another whether something may be denied there that was not.
type narrowing map[[2]*group]bool

func (n narrowing) move(from, to *group) {
	pair := [2]*group{from, to}
	if _, ok := n[pair]; ok || from == to {
		return
	}
	switch {
	case to == nil || to.open():
		n[pair] = false
	case from == nil:
		n[pair] = true
	default:
		n[pair] = !to.contains(from)
	}
}

// settle says whether an address is local, and in which groups.
func (c *Compiler) settle(a addr, change *Change, narrower narrowing) {
	o := c.owner(a)
	was, had := c.local[a]
	if o == nil || !o.local {
		if had {
			delete(c.local, a)
			change.Gone = append(change.Gone, a.ip())
		}
		return
	}
	is := o.class.sides
	if had && was == is {
		return
	}
	c.local[a] = is
	change.Set[a.ip()] = is.ids()
	if had {
		narrower.move(was[in], is[in])
		narrower.move(was[out], is[out])
	}
}
