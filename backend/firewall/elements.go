package firewall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

// Set is a set of one of our tables, of the family as the kernel numbers it (unix.NFPROTO_INET).
type Set struct {
	Family uint8
	Name   string
}

// Element is what is in a set. Its key is as the kernel has it: of a concatenation, each part is padded to four bytes; of an
// interval it is the first key, the last, and one byte more (see ports.Element).
type Element struct {
	Set Set
	Key string
}

// Claim is what an owner wants to be in sets: a peer's lease, say. An owner that wants nothing is gone.
type Claim struct {
	Owner    string
	Elements []Element
}

// Elements holds what is in the sets of our tables, one element at a cost that does not grow with their number. The sets are
// declared by the rules: what is wanted in one that is not declared waits for it. All methods may be called at any time.
type Elements struct {
	log     *slog.Logger
	conn    *rtnl.Conn // nil: the kernel has no nftables
	batch   rtnl.Batch
	metrics task.Metrics
	begin   <-chan struct{} // nil: at once
	wake    chan struct{}
	changed chan struct{}

	mu      sync.Mutex
	owners  map[owner][]Element
	sets    map[Set]*elements
	dirty   map[Element]struct{} // those that may have to be added or removed
	waiting []chan struct{}      // for the next pass
	status  task.Status
	begun   bool // there was a Replace
	views   map[string]*ElementsOf
	lookAt  time.Time // when to look at what others may have changed; zero: at nothing

	// What follows is run's.
	failures int // in a row
	fights   task.Fights
}

// settle is how long elements are left alone after others changed some: who does that changes many.
const settle = 50 * time.Millisecond

// kindElement is what elements are called in the log and in metrics.
const kindElement = "element"

// owner is one of a network's.
type owner struct{ network, name string }

// elements are those of one set.
type elements struct {
	declared bool
	look     bool // others may have changed it
	known    bool // there is nothing in it but what was seen there, or put
	state    map[string]state
	// records reads what is wanted where others add what they want, and make a record of it; nil: what owners claim is.
	records func(there map[string]bool) (keys []string, err error)
}

type state struct {
	claims int32
	there  bool // in the kernel
}

// newElements makes what does nothing until run.
func newElements(cfg Config) (*Elements, error) {
	conn, err := rtnl.DialNetfilter(cfg.Namespace, rtnl.EventsSize)
	if err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, err
	}
	m, err := task.NewMetrics(cfg.Registerer)
	return &Elements{
		log: cfg.Log, conn: conn, metrics: m, wake: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		owners: map[owner][]Element{}, sets: map[Set]*elements{}, dirty: map[Element]struct{}{},
		begin: cfg.Begin, views: map[string]*ElementsOf{},
	}, err
}

// Follow has records say what is to be in a set, into which others put elements too, given what is there: it was seen before
// records is called. Follow must be called before Firewall.Run, and Look whenever a record has changed.
func (e *Elements) Follow(s Set, records func(there map[string]bool) (keys []string, err error)) {
	e.set(s).records = records
}

// Look compares a set with what is wanted there.
func (e *Elements) Look(s Set) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(s).look = true
	e.lookIn(settle)
}

// lookIn has those sets looked at that are to be, after a while. The caller holds the lock.
func (e *Elements) lookIn(d time.Duration) {
	if at := time.Now().Add(d); e.lookAt.IsZero() || d == 0 {
		e.lookAt = at
		task.Signal(e.wake)
	}
}

// lookAll compares all sets with what is wanted there, after a while.
func (e *Elements) lookAll(in time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.sets {
		s.look = true
	}
	e.lookIn(in)
}

// Replace makes all the complete state that a network desires. What is in the kernel is not touched before.
func (e *Elements) Replace(network string, all []Claim) {
	e.mu.Lock()
	defer e.mu.Unlock()
	keep := make(map[string]bool, len(all))
	for _, c := range all {
		keep[c.Owner] = true
	}
	for o := range e.owners {
		if o.network == network && !keep[o.name] {
			e.claim(o, nil)
		}
	}
	e.begun = true
	e.update(network, all)
}

// Update replaces what some owners of a network want. What it returns is closed after that was tried in the kernel.
func (e *Elements) Update(network string, changed []Claim) (done <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.update(network, changed)
}

func (e *Elements) update(network string, changed []Claim) (done chan struct{}) {
	for _, c := range changed {
		e.claim(owner{network, c.Owner}, c.Elements)
	}
	return e.await()
}

// await returns what the next pass closes. The caller holds the lock.
func (e *Elements) await() chan struct{} {
	done := make(chan struct{})
	e.waiting = append(e.waiting, done)
	e.status.Pending = true
	task.Signal(e.wake)
	return done
}

func (e *Elements) set(s Set) *elements {
	if e.sets[s] == nil {
		e.sets[s] = &elements{state: map[string]state{}}
	}
	return e.sets[s]
}

// declare tells which sets of a family there are, now or again: then what is in them is not known.
func (e *Elements) declare(family uint8, sets []Set, anew bool) (done <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s, elements := range e.sets {
		if s.Family == family {
			elements.declared = false
		}
	}
	for _, s := range sets {
		elements := e.set(s)
		elements.known = elements.known && !anew
		elements.declared, elements.look = true, true
	}
	e.lookIn(0)
	return e.await()
}

// Status tells how far the elements are.
func (e *Elements) Status() task.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status
}

// Changed receives after Status changed.
func (e *Elements) Changed() <-chan struct{} { return e.changed }

// run brings the sets to what is wanted whenever one of them changes, until ctx ends; then it returns nil and leaves them as
// they are. Where the kernel has no nftables it does nothing: no set is ever declared.
func (e *Elements) run(ctx context.Context) error {
	if e.conn != nil {
		defer e.conn.Close()
	}
	if e.begin != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-e.begin:
		}
	}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		case <-retry.C:
		}
		retry.Reset(e.pass())
	}
}

// pass brings the sets there, and returns when to do so again if nothing happens.
func (e *Elements) pass() (again time.Duration) {
	e.mu.Lock()
	dirty, waiting := e.dirty, e.waiting
	e.dirty, e.waiting = map[Element]struct{}{}, nil
	begun := e.begun
	if !begun {
		e.dirty = dirty
	}
	e.mu.Unlock()
	defer func() {
		for _, done := range waiting {
			close(done)
		}
	}()
	if !begun {
		return lookEvery
	}
	healed, err := e.bring(dirty)
	if errors.Is(err, unix.ENOENT) { // others changed it a moment ago
		e.lookAll(0)
		healed, err = e.bring(map[Element]struct{}{})
	}
	return e.conclude(healed, err)
}

// bring makes the sets what they are to be, in one transaction, and tells how many elements others had changed.
func (e *Elements) bring(dirty map[Element]struct{}) (healed int, err error) {
	var unseen error // of one set, which keeps none of the others back
	for set, records := range e.toSee() {
		seen, err := dumpSet(e.conn, &e.batch, set)
		var recorded []string
		if err == nil && records != nil {
			recorded, err = records(seen)
		}
		if err != nil {
			unseen = fmt.Errorf("look at set %s: %w", set.Name, err)
			continue
		}
		e.mu.Lock()
		healed += e.compare(set, seen, recorded, dirty)
		e.mu.Unlock()
	}
	add, remove := e.sort(dirty)
	if len(add)+len(remove) > 0 {
		if err = commitSets(e.conn, &e.batch, add, remove); err != nil {
			err = fmt.Errorf("change elements of sets: %w", err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.note(add, true, err)
	e.note(remove, false, err)
	return healed, cmp.Or(err, unseen)
}

// toSee are the sets that others may have changed, and what reads their records.
func (e *Elements) toSee() map[Set]func(map[string]bool) ([]string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	see := map[Set]func(map[string]bool) ([]string, error){}
	if e.lookAt.IsZero() || time.Now().Before(e.lookAt) {
		return see
	}
	e.lookAt = time.Time{}
	for set, s := range e.sets {
		if s.look && s.declared {
			s.look, see[set] = false, s.records
		}
	}
	return see
}
