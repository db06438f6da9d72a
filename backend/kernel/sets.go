package kernel

import (
	"context"
	"errors"
	"io/fs"
	"time"
)

// wholeSet brings objects of one kind to the kernel all together.
type wholeSet interface {
	apply(ctx context.Context, desired []Object) error
	// drifted names what differs in the kernel from what was applied last.
	drifted(ctx context.Context) ([]string, error)
	remove(ctx context.Context) error
}

// set is a wholeSet and what there is to do for it.
type set struct {
	kind    Kind
	whole   wholeSet
	due     bool  // to be applied
	check   bool  // to be checked
	waiting bool  // for a link
	drift   int   // how many objects others changed
	err     error // why the last apply failed
	failed  int   // how often it did, one after the other
	retryAt time.Time
}

// audit checks the set. The first time it is due in any case, because an earlier run may have left something.
func (s *set) audit(ctx context.Context, first bool) {
	s.due = s.due || first
	if !s.due {
		s.compare(ctx)
	}
}

// drifts tells whether others have changed the set since it was applied.
func (s *set) drifts(ctx context.Context) bool {
	if s.due {
		return false // it is known that it is not as desired
	}
	s.compare(ctx)
	return s.due
}

func (s *set) compare(ctx context.Context) {
	s.check = false
	drift, err := s.whole.drifted(ctx)
	s.drift = len(drift)
	s.due = s.due || err != nil || s.drift > 0
}

// applySets begins to apply the sets that are due: nft and iptables take as long as thousands of other objects do. They
// are applied when finish returns.
func (r *Reconciler) applySets(ctx context.Context, now time.Time) (finish func()) {
	var begun []func()
	for _, s := range r.sets {
		t := r.claims.trackers[s.kind]
		if s.check {
			s.compare(ctx)
		}
		if tr := t.troubles[Key{}]; tr != nil && s.drift > 0 && len(t.pending) == 0 && now.Before(tr.next) {
			s.due, s.err, s.retryAt = false, errFought, tr.next
		}
		if !s.due && len(t.pending) == 0 {
			continue
		}
		for _, e := range append(t.take(put), t.take(remove)...) {
			t.done(e)
		}
		s.due, s.waiting = false, false
		desired, applied := t.values(), make(chan error, 1)
		go func() { applied <- s.whole.apply(ctx, desired) }()
		begun = append(begun, func() { r.applied(ctx, s, <-applied, now) })
	}
	return func() {
		for _, end := range begun {
			end()
		}
	}
}

// applied notes what became of a set.
func (r *Reconciler) applied(ctx context.Context, s *set, err error, now time.Time) {
	switch {
	case err == nil:
		s.err, s.failed = nil, 0
		if s.drift > 0 {
			r.healed(s.kind, nil, s.drift, now)
			s.drift = 0
		}
	case ctx.Err() != nil:
		s.due = true
	case errors.Is(err, fs.ErrNotExist) && r.linkMissing(): // a parameter of that link, most likely
		s.waiting, s.err, s.failed = true, nil, 0
	default:
		r.failSet(s, err, now)
	}
}

func (r *Reconciler) failSet(s *set, err error, now time.Time) {
	if s.err == nil {
		r.log.Warn("not programmed", "object", s.kind.String(), "err", err)
	}
	r.metrics.errors.WithLabelValues(s.kind.String()).Inc()
	s.err, s.retryAt = err, now.Add(backoff(s.failed))
	s.failed++
}

// linkMissing tells whether a desired link is not there.
func (r *Reconciler) linkMissing() bool {
	for _, o := range r.claims.trackers[KindLink].values() {
		if _, ok := r.links.byName[o.(Link).name()]; !ok {
			return true
		}
	}
	return false
}

// close ends the subscription of a firewall that is not run.
func (f *firewall) close() {
	if f.events != nil {
		f.events.Close()
	}
}
