package kernel

import (
	"errors"
	"slices"
	"time"
)

// How long after a failure an object is tried again, at first and at most.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// errClaimed is why an object fails whose key another owner holds with another value.
var errClaimed = errors.New("claimed with another value before")

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

// replace makes all the owners there are. It changes all.
func (d *desired) replace(all map[string][]Object) {
	for owner := range d.owners {
		if _, ok := all[owner]; !ok {
			all[owner] = nil
		}
	}
	for kind := KindNeighbour; kind < kinds; kind++ {
		d.tables[kind].expect(len(all)) // most owners are peers
	}
	d.update(all)
}

// update brings some owners to new objects. All claims come before all releases, so that an object which goes from one
// owner to another does not disappear between. Owners come in order, so that it is no chance who is first to claim.
func (d *desired) update(changed map[string][]Object) {
	var owners []string
	for owner, objects := range changed {
		if !slices.Equal(objects, d.owners[owner]) {
			owners = append(owners, owner)
		}
	}
	slices.Sort(owners)
	for _, owner := range owners {
		for _, o := range changed[owner] {
			d.tables[o.Kind()].claim(owner, o)
			d.use(o, +1)
		}
	}
	for _, owner := range owners {
		for _, o := range d.owners[owner] {
			d.tables[o.Kind()].release(owner, o)
			d.use(o, -1)
		}
		if len(changed[owner]) == 0 {
			delete(d.owners, owner)
		} else {
			d.owners[owner] = changed[owner]
		}
	}
}

// use counts that o stands on a link.
func (d *desired) use(o Object, n int) {
	name := ""
	switch o := o.(type) {
	case entry:
		name = o.link()
	case VXLAN:
		name = o.Underlay
	}
	if name == "" {
		return
	}
	if d.users[name] += n; d.users[name] == 0 {
		delete(d.users, name)
	}
}
