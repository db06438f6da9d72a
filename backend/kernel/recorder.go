package kernel

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Recorder stands in for a Reconciler where no kernel is at hand: it keeps what is desired and says that it is so. The
// zero value is ready for use, by several goroutines.
type Recorder struct {
	// Direct is what Near says of an address; nil: none is near.
	Direct func(netip.Addr) bool

	once     sync.Once
	changed  chan struct{}
	underlay chan struct{}

	mu     sync.Mutex
	owners map[string][]Object
	status Status
}

func (r *Recorder) init() {
	r.once.Do(func() {
		r.changed, r.underlay = make(chan struct{}, 1), make(chan struct{}, 1)
	})
}

// Replace is as Reconciler's.
func (r *Recorder) Replace(all []Claim) {
	r.init()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owners = make(map[string][]Object, len(all))
	r.status.InStep = len(r.status.Failed) == 0
	r.take(all)
}

// Update is as Reconciler's.
func (r *Recorder) Update(changed []Claim) {
	r.init()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.owners != nil {
		r.take(changed)
	}
}

func (r *Recorder) take(changed []Claim) {
	for _, c := range changed {
		if len(c.Objects) == 0 {
			delete(r.owners, c.Owner)
		} else {
			r.owners[c.Owner] = c.Objects
		}
	}
	signal(r.changed)
}

// Fail lets Status tell of failures from now on; of none: that all is well again.
func (r *Recorder) Fail(failed ...Failure) {
	r.init()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Failed = failed
	r.status.InStep = len(failed) == 0 && r.owners != nil
	signal(r.changed)
}

// Status is in step since the first Replace, but for what Fail said.
func (r *Recorder) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status.clone()
	s.Objects = map[Kind]int{}
	for o := range r.distinct() {
		s.Objects[o.Kind()]++
	}
	return s
}

// Changed is as Reconciler's.
func (r *Recorder) Changed() <-chan struct{} {
	r.init()
	return r.changed
}

// ChangeUnderlay lets UnderlayChanged receive.
func (r *Recorder) ChangeUnderlay() {
	r.init()
	signal(r.underlay)
}

// UnderlayChanged is as Reconciler's.
func (r *Recorder) UnderlayChanged() <-chan struct{} {
	r.init()
	return r.underlay
}

// Near asks Direct.
func (r *Recorder) Near(addrs []netip.Addr) ([]bool, error) {
	near := make([]bool, len(addrs))
	for i, a := range addrs {
		near[i] = r.Direct != nil && r.Direct(a)
	}
	return near, nil
}

// Owned are the objects of one owner.
func (r *Recorder) Owned(owner string) []Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.owners[owner])
}

// String is all that is desired, a line for each object in the order they would be programmed.
func (r *Recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	objects := slices.SortedFunc(maps.Keys(r.distinct()), func(a, b Object) int {
		if a.Kind() != b.Kind() {
			return int(a.Kind()) - int(b.Kind())
		}
		return strings.Compare(a.String(), b.String())
	})
	var s strings.Builder
	for _, o := range objects {
		s.WriteString(o.String() + "\n")
	}
	return s.String()
}

func (r *Recorder) distinct() map[Object]bool {
	all := make(map[Object]bool)
	for _, objects := range r.owners {
		for _, o := range objects {
			all[o] = true
		}
	}
	return all
}
