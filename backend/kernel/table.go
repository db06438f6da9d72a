package kernel

import (
	"math/rand/v2"
	"slices"
	"time"
)

// state is how far the kernel is from an item.
type state uint8

const (
	settled state = iota // in step
	dirty                // to be programmed
	waiting              // like dirty, but the link is missing
	stuck                // like waiting, but the link is there to be made, and fails
	failed               // to be tried again
	states
)

// item is one key: what it should be, who says so, and how far the kernel is from it.
type item struct {
	value   Object // what it should be; where nobody claims the key, what it was
	owner   string // who claimed it first; Several when only others are left
	n       int32  // how many times the value is claimed; 0: it should not be there
	seen    uint32 // the dump that last found the value in the kernel
	state   state
	heal    bool // dirty or waiting because somebody else changed it
	queued  bool // in the table's queue
	suspect bool // somebody else changed it, perhaps; soon dirty
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
	return failure{err: err, delay: delay, at: now.Add(jitter(delay))}
}

// jitter is d, or up to a quarter less: what failed together need not come again together.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/4) }

// table holds the items of one kind: those that are claimed, and those that are not but may be in the kernel.
type table struct {
	items    map[Key]*item
	rivals   map[Key][]rival
	failures map[*item]failure // of those that failed, also while they are tried again
	queue    []*item           // all that are dirty, and some that were
	suspects []*item           // all that are suspect, and some that were
	fights   map[Key]fight     // lately
	count    [states]int       // of items
	claimed  int               // how many items are
	doubtful int               // how many are suspect
}

func newTable() *table {
	return &table{items: map[Key]*item{}, rivals: map[Key][]rival{}, failures: map[*item]failure{}, fights: map[Key]fight{}}
}

// expect makes room for n items in an empty table: to grow by and by costs more than all the rest.
func (t *table) expect(n int) {
	if len(t.items) == 0 {
		t.items = make(map[Key]*item, n)
	}
}

// desired is the item of a key that somebody claims, or nil.
func (t *table) desired(key Key) *item {
	if it := t.items[key]; it != nil && it.n > 0 {
		return it
	}
	return nil
}

// item is that of o's key. If there was none, nobody claims it, and o is in the kernel.
func (t *table) item(o Object) *item {
	key := o.Key()
	it := t.items[key]
	if it == nil {
		it = &item{value: o}
		t.items[key] = it
		t.count[settled]++
	}
	return it
}

// set changes the state, and forgets the item if there is nothing more to know of it.
func (t *table) set(it *item, s state) {
	t.count[it.state]--
	t.count[s]++
	it.state = s
	switch {
	case s == dirty:
		t.enqueue(it)
	case s == settled && it.n == 0 && !it.suspect:
		t.count[settled]--
		delete(t.items, it.value.Key())
	}
}

func (t *table) enqueue(it *item) {
	if !it.queued {
		it.queued = true
		t.queue = append(t.queue, it)
	}
}

// take empties the queue of the items to be put, or of those to be removed. Who does not bring them into another state
// must enqueue them again.
func (t *table) take(op op) []*item {
	all := t.queue
	t.queue = nil
	taken := all[:0]
	for _, it := range all {
		it.queued = false
		switch {
		case it.state != dirty:
		case (it.n > 0) == (op == put):
			taken = append(taken, it)
		default:
			t.enqueue(it)
		}
	}
	return taken
}

// doubt makes an item suspect.
func (t *table) doubt(it *item) {
	if !it.suspect {
		it.suspect = true
		t.doubtful++
		t.suspects = append(t.suspects, it)
	}
}

func (t *table) trust(it *item) {
	if it.suspect {
		it.suspect = false
		t.doubtful--
	}
}

// touch makes an item dirty because its desired value changed, which begins a new life.
func (t *table) touch(it *item) {
	delete(t.failures, it)
	t.trust(it)
	it.heal = false
	t.set(it, dirty)
}

// miss makes an item dirty because the kernel differs from it. It leaves a failing one to its retries, and one that is
// fought over to the next round.
func (t *table) miss(it *item, heal bool) {
	t.trust(it)
	if _, failing := t.failures[it]; failing || it.state == dirty {
		return
	}
	it.heal = heal
	if f, ok := t.fights[it.value.Key()]; ok && heal && time.Now().Before(f.next) {
		t.failures[it] = failure{err: errFought, at: f.next}
		t.set(it, failed)
		return
	}
	t.set(it, dirty)
}

// wait says that an item cannot be there before its link is.
func (t *table) wait(it *item, s state) {
	delete(t.failures, it)
	t.set(it, s)
}

// settle says that an item is in step.
func (t *table) settle(it *item) {
	if len(t.failures) > 0 {
		delete(t.failures, it)
	}
	t.trust(it)
	t.set(it, settled)
}

// fail says that an item could not be programmed: it is tried again after a while that doubles each time.
func (t *table) fail(it *item, err error, now time.Time) {
	t.failures[it] = t.failures[it].again(err, now)
	t.set(it, failed)
}

// change brings the claims of some owners to objects of the table's kind from what they were to what they are. All claims
// come before all releases, so that an object which goes from one owner to another does not disappear between.
func (t *table) change(kind Kind, all []claims) {
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
func (t *table) claim(owner string, o Object) {
	it := t.item(o)
	switch {
	case it.n == 0:
		it.value, it.owner, it.n = o, owner, 1
		t.claimed++
		t.touch(it)
	case it.value == o:
		it.n++
	default:
		key := o.Key()
		t.rivals[key] = append(t.rivals[key], rival{owner, o})
	}
}

// release takes back one claim of owner. Where it was the last to its value, the value of the same owner takes its
// place, or else that of who waits longest.
func (t *table) release(owner string, o Object) {
	key := o.Key()
	it := t.items[key]
	if it.value != o {
		t.dropRival(key, slices.Index(t.rivals[key], rival{owner, o}))
		return
	}
	it.n--
	switch {
	case it.n > 0 && it.owner == owner:
		it.owner = Several
		return
	case it.n > 0:
		return
	}
	t.claimed--
	t.touch(it)
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

func (t *table) dropRival(key Key, i int) {
	if rest := slices.Delete(t.rivals[key], i, i+1); len(rest) > 0 {
		t.rivals[key] = rest
	} else {
		delete(t.rivals, key)
	}
}

// values are the desired objects, in no order.
func (t *table) values() []Object {
	all := make([]Object, 0, t.claimed)
	for _, it := range t.items {
		if it.n > 0 {
			all = append(all, it.value)
		}
	}
	return all
}
