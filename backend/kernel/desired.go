package kernel

import (
	"errors"
	"maps"
	"slices"
	"sync"
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

// replace makes all the owners there are. It takes all over.
func (d *desired) replace(all map[string][]Object) {
	for owner := range d.owners {
		if _, ok := all[owner]; !ok {
			all[owner] = nil
		}
	}
	for kind := KindNeighbour; kind < kinds; kind++ {
		d.tables[kind].expect(len(all)) // most owners are peers
	}
	d.claim(all)
	maps.DeleteFunc(all, func(_ string, objects []Object) bool { return len(objects) == 0 })
	d.owners = all
}

// update brings some owners to new objects.
func (d *desired) update(changed map[string][]Object) {
	d.claim(changed)
	for owner, objects := range changed {
		if len(objects) == 0 {
			delete(d.owners, owner)
		} else {
			d.owners[owner] = objects
		}
	}
}

// claims are what an owner had and has.
type claims struct {
	owner         string
	before, after []Object
}

// claim brings the tables to the claims of some owners. Owners come in order, so that it is no chance who is first to
// claim. A table knows nothing of the others: where there is much to do, each does it beside them.
func (d *desired) claim(changed map[string][]Object) {
	const many = 1000
	all := make([]claims, 0, len(changed))
	for _, owner := range slices.Sorted(maps.Keys(changed)) {
		before, after := d.owners[owner], changed[owner]
		if !slices.Equal(after, before) {
			all = append(all, claims{owner, before, after})
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
