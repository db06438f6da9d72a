package task

// View is a Task as one of several networks uses it.
type View[T comparable] struct {
	t       *Task[T]
	network string
	changed chan struct{}
	applied chan struct{}

	// Guarded by t.mu.
	first int  // the number of its first Set; 0: there was none
	there bool // applied is closed
}

// For returns the network's View, the same one each time.
func (t *Task[T]) For(network string) *View[T] {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.views[network]
	if v == nil {
		v = &View[T]{t: t, network: network, changed: make(chan struct{}, 1), applied: make(chan struct{})}
		t.views[network] = v
	}
	return v
}

// Set says what the network wants: see [Task.Set].
func (v *View[T]) Set(want []T) { v.t.Set(v.network, want) }

// Status tells how far the thing is, which is one for all networks, and counts what this one wants of it.
func (v *View[T]) Status() Status {
	s := v.t.Status()
	v.t.mu.Lock()
	defer v.t.mu.Unlock()
	s.Objects = len(v.t.wanted[v.network])
	return s
}

// Changed receives after Status changed.
func (v *View[T]) Changed() <-chan struct{} { return v.changed }

// Applied is closed when what the network wanted was there for the first time.
func (v *View[T]) Applied() <-chan struct{} { return v.applied }

// bring notes that what was said up to a number is there. The caller holds the lock.
func (v *View[T]) bring(said int) {
	if !v.there && v.first > 0 && v.first <= said {
		v.there = true
		close(v.applied)
	}
}
