package kernel

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// How long after a failure an object is tried again, at first and at most. An object that others undo is put back at once,
// and so often, until that was long enough ago; then it is a fight, and each round begins later.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
	peaceful   = 8
	forgotten  = time.Minute
)

var (
	// errClaimed is why an object fails whose key another owner holds with another value.
	errClaimed = errors.New("claimed with another value before")
	// errFought is why an object is not there though it could be.
	errFought = errors.New("others undo it again and again")
)

// desired is all that the kernel should hold: by owner, as it is told, and by key, as it is programmed.
type desired struct {
	owners map[string][]Object
	tables [kinds]*table
	users  map[string]int // of each link, by name: how many claims stand on it
}

func newDesired() *desired {
	d := &desired{owners: map[string][]Object{}, users: map[string]int{}}
	for kind := range d.tables {
		d.tables[kind] = newTable()
	}
	return d
}

// replace makes all the owners there are.
func (d *desired) replace(all []Claim) {
	if len(d.owners) == 0 {
		d.owners = make(map[string][]Object, len(all))
	} else {
		all = append(all, d.gone(all)...)
	}
	for kind := KindNeighbour; kind < kinds; kind++ {
		d.tables[kind].expect(len(all)) // most owners are peers
	}
	d.update(all)
}

// gone are the owners that do not claim any more.
func (d *desired) gone(all []Claim) (gone []Claim) {
	there := make(map[string]bool, len(all))
	for _, c := range all {
		there[c.Owner] = true
	}
	for owner := range d.owners {
		if !there[owner] {
			gone = append(gone, Claim{Owner: owner})
		}
	}
	return gone
}

// claims are what an owner had and has.
type claims struct {
	owner         string
	before, after []Object
}

// update brings some owners to new objects. A table knows nothing of the others: where there is much to do, each does it
// beside them.
func (d *desired) update(changed []Claim) {
	const many = 1000
	all := make([]claims, 0, len(changed))
	for _, c := range changed {
		if before := d.owners[c.Owner]; !slices.Equal(c.Objects, before) {
			all = append(all, claims{c.Owner, before, c.Objects})
		}
	}
	var others sync.WaitGroup
	for kind, t := range d.tables {
		if len(all) < many {
			t.change(Kind(kind), all)
		} else {
			others.Go(func() { t.change(Kind(kind), all) })
		}
	}
	for _, c := range all {
		d.use(c.after, +1)
		d.use(c.before, -1)
		if len(c.after) == 0 {
			delete(d.owners, c.owner)
		} else {
			d.owners[c.owner] = c.after
		}
	}
	others.Wait()
}

// use counts that objects stand on links.
func (d *desired) use(objects []Object, n int) {
	for _, o := range objects {
		name := ""
		switch o := o.(type) {
		case entry:
			name = o.link()
		case VXLAN:
			name = o.Underlay
		}
		if name == "" {
			continue
		}
		if d.users[name] += n; d.users[name] == 0 {
			delete(d.users, name)
		}
	}
}
