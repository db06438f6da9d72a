package kernel

import (
	"iter"
	"time"

	"github.com/overlayd/overlayd/backend/task"
)

// tracked is one key of a kind: what the kernel should have, and what it has.
type tracked struct {
	want    Object // nil: nobody claims the key
	had     Object // what is there, as far as is known; nil: nothing that is ours to touch
	owner   *owner // who claimed it first; its network's several when only others are left
	n       int32  // how many claims want has
	seen    uint32 // the dump that last found it
	lost    bool   // it differs because of others
	queued  bool   // in the tracker's pending
	blocked bool   // in the tracker's blocked
}

func (e *tracked) differs() bool { return e.want != e.had }

// object is what the kernel should have, or else has.
func (e *tracked) object() Object {
	if e.want != nil {
		return e.want
	}
	return e.had
}

// tracker holds what of one kind is wanted, and what is had. What differs is pending, or blocked for want of its link, or
// lost for a moment, until others have had their say, or in trouble, to be tried again.
type tracker struct {
	entries   map[Key]*tracked
	conflicts map[Key][]conflict
	troubles  map[Key]*trouble
	pending   []*tracked            // all that are to be programmed, and some that were
	blocked   map[string][]*tracked // likewise those that wait, by the name of their link
	lost      []*tracked            // likewise those that others have changed
	claimed   int                   // how many entries are wanted
	differing int                   // how many are not as wanted
	dump      uint32                // the number of the latest dump
	changes   uint64                // how often the kernel was seen, or brought, to change
	retryAt   time.Time             // when something in trouble is to be tried again, at the earliest; zero: never
}

func newTracker() *tracker {
	return &tracker{
		entries: map[Key]*tracked{}, conflicts: map[Key][]conflict{}, troubles: map[Key]*trouble{}, blocked: map[string][]*tracked{},
	}
}

// expect makes room for n entries in an empty tracker: to grow by and by costs more than all the rest.
func (t *tracker) expect(n int) {
	if len(t.entries) == 0 {
		t.entries = make(map[Key]*tracked, n)
	}
}

// entry is that of a key. One that is new is to be set to something: of what is neither wanted nor had there is none.
func (t *tracker) entry(key Key) *tracked {
	e := t.entries[key]
	if e == nil {
		e = &tracked{}
		t.entries[key] = e
	}
	return e
}

// wanted is the entry of a key that somebody claims, or nil.
func (t *tracker) wanted(key Key) *tracked {
	if e := t.entries[key]; e != nil && e.want != nil {
		return e
	}
	return nil
}

// set changes what is wanted and had, and forgets the entry if that is nothing.
func (t *tracker) set(e *tracked, want, had Object) {
	if e.differs() {
		t.differing--
	}
	if want != had {
		t.differing++
	} else {
		e.lost = false
	}
	if want == nil && had == nil {
		delete(t.entries, e.object().Key())
	}
	e.want, e.had = want, had
}

// rewant changes what is wanted, which begins a new life.
func (t *tracker) rewant(key Key, e *tracked, want Object) {
	t.set(e, want, e.had)
	e.lost = false
	t.calm(key)
	t.enqueue(e)
}

// enqueue makes an entry pending that is not as wanted.
func (t *tracker) enqueue(e *tracked) {
	if !e.queued && e.differs() {
		e.queued = true
		t.pending = append(t.pending, e)
	}
}

// take empties the queue of what is to be put, or of what is to be removed. Who does not bring it to another state must
// enqueue it again.
func (t *tracker) take(op op) []*tracked {
	all := t.pending
	t.pending = nil
	taken := all[:0]
	for _, e := range all {
		e.queued = false
		switch {
		case !e.differs():
		case (e.want != nil) == (op == put):
			taken = append(taken, e)
		default:
			t.enqueue(e)
		}
	}
	return taken
}

// done says that the kernel has what is wanted.
func (t *tracker) done(e *tracked) {
	if len(t.troubles) > 0 {
		t.calm(e.object().Key())
	}
	t.changes++
	t.set(e, e.want, e.want)
}

// observed takes in what others made of an entry, and tells whether it is lost.
func (t *tracker) observed(e *tracked, had Object) bool {
	if e.had == had {
		return false
	}
	t.changes++
	t.set(e, e.want, had)
	if e.differs() {
		t.lost = append(t.lost, e)
	}
	return e.differs()
}

// dumped takes in what a dump told of an entry.
func (t *tracker) dumped(e *tracked, had Object) {
	e.seen = t.dump
	if e.had == had {
		return
	}
	if t.set(e, e.want, had); e.differs() {
		t.lost = append(t.lost, e)
	}
}

// heal makes pending what others have changed and not changed back. What they change again and again waits for its turn.
func (t *tracker) heal(now time.Time) {
	lost := t.lost
	t.lost = nil
	for _, e := range lost {
		if !e.differs() || e.queued || e.blocked {
			continue
		}
		if tr := t.troubles[e.object().Key()]; tr != nil && (tr.err != nil || now.Before(tr.next)) {
			if tr.err == nil {
				t.retry(tr, task.ErrFought)
			}
			continue
		}
		e.lost = true
		t.enqueue(e)
	}
}

// block lets an entry wait for its link.
func (t *tracker) block(e *tracked, link string) {
	t.calm(e.object().Key())
	if !e.blocked {
		e.blocked = true
		t.blocked[link] = append(t.blocked[link], e)
	}
}

// unblock makes pending what waited for the link.
func (t *tracker) unblock(link string) {
	for _, e := range t.blocked[link] {
		e.blocked = false
		t.enqueue(e)
	}
	delete(t.blocked, link)
}

// waiting are the entries that wait for the link.
func (t *tracker) waiting(link string) iter.Seq[*tracked] {
	return func(yield func(*tracked) bool) {
		for _, e := range t.blocked[link] {
			if e.differs() && !e.queued && !yield(e) {
				return
			}
		}
	}
}

// values are the wanted objects, in no order.
func (t *tracker) values() []Object {
	all := make([]Object, 0, t.claimed)
	for _, e := range t.entries {
		if e.want != nil {
			all = append(all, e.want)
		}
	}
	return all
}
