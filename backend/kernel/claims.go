package kernel

import (
	"errors"
	"slices"
	"sync"
)

// errClaimed is why an object fails whose key another owner holds with another value.
var errClaimed = errors.New("claimed with another value before")

// network is what one network has of the trackers.
type network struct {
	name    string
	claimed [kinds]int // entries that are wanted, and it claimed first
	several owner      // of what one of its owners has given up, and others have not
}

// owner is who claims objects of one network.
type owner struct {
	network *network
	name    string
	objects []Object
}

// conflict is a claim to a key that is taken, waiting for its turn.
type conflict struct {
	owner *owner
	value Object
}

// claims are what should be in the kernel: by owner, as it is told, and by key, as it is programmed.
type claims struct {
	owners   map[[2]string]*owner // by network and name
	networks map[string]*network
	trackers [kinds]*tracker
	users    map[string]int // of each link, by name: how many claims stand on it
}

func newClaims() *claims {
	c := &claims{owners: map[[2]string]*owner{}, networks: map[string]*network{}, users: map[string]int{}}
	for kind := range c.trackers {
		c.trackers[kind] = newTracker()
	}
	return c
}

// network is what the network of a name has.
func (c *claims) network(name string) *network {
	n := c.networks[name]
	if n == nil {
		n = &network{name: name}
		n.several = owner{network: n, name: Several}
		c.networks[name] = n
	}
	return n
}

// replace makes all the owners that a network has.
func (c *claims) replace(network string, all []Claim) {
	if len(c.owners) == 0 {
		c.owners = make(map[[2]string]*owner, len(all))
	} else {
		all = append(all, c.gone(network, all)...)
	}
	for kind := KindNeighbour; kind < kinds; kind++ {
		c.trackers[kind].expect(len(all)) // most owners are peers
	}
	c.update(network, all)
}

// gone are the owners of a network that do not claim any more.
func (c *claims) gone(network string, all []Claim) (gone []Claim) {
	there := make(map[string]bool, len(all))
	for _, claim := range all {
		there[claim.Owner] = true
	}
	for _, o := range c.owners {
		if o.network.name == network && !there[o.name] {
			gone = append(gone, Claim{Owner: o.name})
		}
	}
	return gone
}

// shift is what an owner had and has.
type shift struct {
	owner         *owner
	before, after []Object
}

// update brings some owners to new objects. A tracker knows nothing of the others: where there is much to do, each does it
// beside them.
func (c *claims) update(network string, changed []Claim) {
	const many = 1000
	of := c.network(network)
	all := make([]shift, 0, len(changed))
	for _, claim := range changed {
		key := [2]string{network, claim.Owner}
		o := c.owners[key]
		if o == nil {
			o = &owner{network: of, name: claim.Owner}
		}
		if slices.Equal(claim.Objects, o.objects) {
			continue
		}
		all = append(all, shift{o, o.objects, claim.Objects})
		if c.owners[key], o.objects = o, claim.Objects; len(o.objects) == 0 {
			delete(c.owners, key)
		}
	}
	var others sync.WaitGroup
	for kind, t := range c.trackers {
		if len(all) < many {
			t.change(Kind(kind), all)
		} else {
			others.Go(func() { t.change(Kind(kind), all) })
		}
	}
	for _, ch := range all {
		c.use(ch.after, +1)
		c.use(ch.before, -1)
	}
	others.Wait()
}

// use counts that objects stand on links.
func (c *claims) use(objects []Object, n int) {
	for _, o := range objects {
		name := ""
		switch o := o.(type) {
		case standing:
			name = o.link()
		case Link:
			name = o.below()
		}
		if name == "" {
			continue
		}
		if c.users[name] += n; c.users[name] == 0 {
			delete(c.users, name)
		}
	}
}

// change brings the claims of the tracker's kind from what they were to what they are. All claims come before all
// releases, so that an object which goes from one owner to another does not disappear between.
func (t *tracker) change(kind Kind, all []shift) {
	for _, c := range all {
		for _, o := range c.after {
			if o.Kind() == kind {
				t.claim(c.owner, o)
			}
		}
	}
	for _, c := range all {
		for _, o := range c.before {
			if o.Kind() == kind {
				t.release(c.owner, o)
			}
		}
	}
}

// claim adds a claim of owner.
func (t *tracker) claim(owner *owner, o Object) {
	key := o.Key()
	e := t.entry(key)
	switch e.want {
	case nil:
		e.owner, e.n = owner, 1
		t.claimed++
		owner.network.claimed[o.Kind()]++
		t.rewant(key, e, o)
	case o:
		e.n++
	default:
		t.conflicts[key] = append(t.conflicts[key], conflict{owner, o})
	}
}

// release takes back one claim of owner. Where it was the last to its value, the value of the same owner takes its
// place, or else that of who waits longest.
func (t *tracker) release(owner *owner, o Object) {
	key := o.Key()
	e := t.entries[key]
	if e.want != o {
		t.withdraw(key, slices.Index(t.conflicts[key], conflict{owner, o}))
		return
	}
	if e.n--; e.n > 0 {
		if e.owner == owner {
			e.owner = &owner.network.several
		}
		return
	}
	t.claimed--
	e.owner.network.claimed[o.Kind()]--
	t.rewant(key, e, nil)
	waiting := t.conflicts[key]
	if len(waiting) == 0 {
		return
	}
	delete(t.conflicts, key)
	next := max(0, slices.IndexFunc(waiting, func(c conflict) bool { return c.owner == owner }))
	t.claim(waiting[next].owner, waiting[next].value)
	for _, c := range slices.Delete(waiting, next, next+1) {
		t.claim(c.owner, c.value)
	}
}

func (t *tracker) withdraw(key Key, i int) {
	if rest := slices.Delete(t.conflicts[key], i, i+1); len(rest) > 0 {
		t.conflicts[key] = rest
	} else {
		delete(t.conflicts, key)
	}
}
