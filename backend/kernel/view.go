package kernel

import (
	"slices"
	"sync/atomic"

	"github.com/overlayd/overlayd/backend/task"
)

// View is the Reconciler as one of several networks uses it: what it says is of its network, and what it is told of its network or
// of all. All methods may be called at any time.
type View struct {
	r        *Reconciler
	network  string
	changed  chan struct{}
	underlay <-chan struct{}
	sessions <-chan struct{}
	status   Status // guarded by r.mu
}

// For returns the network's View, the same one each time.
func (r *Reconciler) For(network string) *View {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.views[network]
	if v == nil {
		v = &View{r: r, network: network, changed: make(chan struct{}, 1), underlay: r.watch.underlay.add(), sessions: r.sessionsChanged.add()}
		r.views[network] = v
	}
	return v
}

// Replace is [Reconciler.Replace].
func (v *View) Replace(all []Claim) { v.r.Replace(v.network, all) }

// Update is [Reconciler.Update].
func (v *View) Update(changed []Claim) { v.r.Update(v.network, changed) }

// Status tells how far the kernel is with the network's objects. What was healed, and who carries links, is told of all.
func (v *View) Status() Status {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return v.status.clone()
}

// Changed receives after Status changed.
func (v *View) Changed() <-chan struct{} { return v.changed }

// UnderlayChanged is [Reconciler.UnderlayChanged].
func (v *View) UnderlayChanged() <-chan struct{} { return v.underlay }

// Sessions is [Reconciler.Sessions].
func (v *View) Sessions() map[WGPeerID]Session { return v.r.Sessions() }

// SessionsChanged is [Reconciler.SessionsChanged].
func (v *View) SessionsChanged() <-chan struct{} { return v.sessions }

// Greet is [Reconciler.Greet].
func (v *View) Greet(peers ...WGPeerID) { v.r.Greet(peers...) }

// tellViews has each network know its part of a status of all. It is called with mu held.
func (r *Reconciler) tellViews(all *Status, pending map[*network]int) {
	for name, v := range r.views {
		next := all.clone()
		if len(r.views) > 1 {
			of := r.claims.networks[name]
			next.Objects = map[Kind]int{}
			for kind := range kinds {
				next.Objects[kind] = 0
				if of != nil {
					next.Objects[kind] = of.claimed[kind]
				}
			}
			next.Pending = pending[of] + pending[nil]
			if of == nil {
				next.Pending = pending[nil]
			}
			next.Failed = slices.DeleteFunc(next.Failed, func(f Failure) bool { return f.Network != name && f.Owner != "" })
			said := slices.ContainsFunc(r.inbox, func(s said) bool { return s.network == name })
			next.InStep = all.InStep || next.Pending+len(next.Failed) == 0 && !said
		}
		if !next.same(v.status) {
			v.status = next
			task.Signal(v.changed)
		}
	}
}

// bells are channels of capacity 1 that all receive of the same.
type bells struct {
	all atomic.Pointer[[]chan struct{}]
}

// add returns one more. Nobody may add at the same time.
func (b *bells) add() <-chan struct{} {
	c := make(chan struct{}, 1)
	var all []chan struct{}
	if had := b.all.Load(); had != nil {
		all = slices.Clone(*had)
	}
	all = append(all, c)
	b.all.Store(&all)
	return c
}

// first is the one that was added first.
func (b *bells) first() chan struct{} { return (*b.all.Load())[0] }

func (b *bells) ring() {
	for _, c := range *b.all.Load() {
		task.Signal(c)
	}
}
