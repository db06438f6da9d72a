package kernel

import (
	"errors"
	"maps"
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

// claim is what a key should be, and how many times it is claimed so.
type claim struct {
	value Object
	owner string // who claimed it first; empty when only others are left
	n     int32
	seen  uint32 // the audit that last found the value in the kernel
}

// rival is a claim to a key that is taken, waiting for its turn.
type rival struct {
	owner string
	value Object
}

// failure is why a key could not be brought to its value, and when to try again.
type failure struct {
	err   error
	delay time.Duration
	at    time.Time
}

func (f failure) again(err error, now time.Time) failure {
	delay := min(max(2*f.delay, firstRetry), lastRetry)
	return failure{err: err, delay: delay, at: now.Add(delay)}
}

// table holds the desired objects of one kind by key, and where the kernel may not be in step with them. A key that
// failed is dirty as well when it is tried again.
type table struct {
	claims  map[Object]*claim
	rivals  map[Object][]rival
	dirty   map[Object]bool // to be programmed; true: to heal what somebody else changed
	waiting map[Object]bool // like dirty, but the link is missing
	failed  map[Object]failure
	suspect map[Object]struct{} // somebody else changed it, perhaps; soon dirty
	grown   bool                // there were many of the last four
}

func newTable() *table {
	t := &table{claims: map[Object]*claim{}, rivals: map[Object][]rival{}}
	t.forget()
	return t
}

func (t *table) forget() {
	t.dirty, t.waiting = map[Object]bool{}, map[Object]bool{}
	t.failed, t.suspect = map[Object]failure{}, map[Object]struct{}{}
}

// shrink gives the memory of empty maps back after there was much in them: they keep it otherwise, and each walk over
// them would go through it.
func (t *table) shrink() {
	const many = 1000
	switch n := len(t.dirty) + len(t.waiting) + len(t.failed) + len(t.suspect); {
	case n > many:
		t.grown = true
	case n == 0 && t.grown:
		t.forget()
		t.grown = false
	}
}

// touch makes key dirty because its desired value changed, which begins a new life.
func (t *table) touch(key Object) {
	t.settle(key)
	t.dirty[key] = false
}

// miss makes key dirty because the kernel differs from it. It leaves a failing one to its retries.
func (t *table) miss(key Object, heal bool) {
	delete(t.suspect, key)
	if _, ok := t.failed[key]; ok {
		return
	}
	if _, ok := t.dirty[key]; !ok {
		t.dirty[key] = heal
	}
	delete(t.waiting, key)
}

// settle says that key is in step.
func (t *table) settle(key Object) {
	delete(t.dirty, key)
	delete(t.waiting, key)
	delete(t.failed, key)
	delete(t.suspect, key)
}

// fail says that key could not be programmed: it is tried again after a while that doubles each time.
func (t *table) fail(key Object, err error, now time.Time) {
	delete(t.dirty, key)
	t.failed[key] = t.failed[key].again(err, now)
}

// settled tells whether key is in step.
func (t *table) settled(key Object) bool {
	_, dirty := t.dirty[key]
	_, waiting := t.waiting[key]
	_, failed := t.failed[key]
	return !dirty && !waiting && !failed
}

// claim adds a claim of owner, and tells whether the value of the key changed.
func (t *table) claim(owner string, o Object) {
	key := o.Key()
	c := t.claims[key]
	switch {
	case c == nil:
		t.claims[key] = &claim{value: o, owner: owner, n: 1}
		t.touch(key)
	case c.value == o:
		c.n++
	default:
		t.rivals[key] = append(t.rivals[key], rival{owner, o})
	}
}

// release takes back one claim of owner. Where it was the last to its value, the value of the same owner takes its
// place, or else that of who waits longest.
func (t *table) release(owner string, o Object) {
	key := o.Key()
	c := t.claims[key]
	if c.value != o {
		t.dropRival(key, slices.Index(t.rivals[key], rival{owner, o}))
		return
	}
	c.n--
	switch {
	case c.n > 0 && c.owner == owner:
		c.owner = ""
		return
	case c.n > 0:
		return
	}
	delete(t.claims, key)
	t.touch(key)
	waiting := t.rivals[key]
	if len(waiting) == 0 {
		return
	}
	delete(t.rivals, key)
	next := max(0, slices.IndexFunc(waiting, func(r rival) bool { return r.owner == owner }))
	t.claim(waiting[next].owner, waiting[next].value)
	for _, r := range slices.Delete(waiting, next, next+1) {
		t.claim(r.owner, r.value)
	}
}

func (t *table) dropRival(key Object, i int) {
	if rest := slices.Delete(t.rivals[key], i, i+1); len(rest) > 0 {
		t.rivals[key] = rest
	} else {
		delete(t.rivals, key)
	}
}

// values are the desired objects, in no order.
func (t *table) values() []Object {
	all := make([]Object, 0, len(t.claims))
	for _, c := range t.claims {
		all = append(all, c.value)
	}
	return all
}

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
func (d *desired) replace(all map[string][]Object) {
	changed := make(map[string][]Object, len(all))
	maps.Copy(changed, all)
	for owner := range d.owners {
		if _, ok := all[owner]; !ok {
			changed[owner] = nil
		}
	}
	d.update(changed)
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
