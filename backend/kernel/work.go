package kernel

import (
	"context"
	"time"
)

// work brings the kernel to the desired state, as far as it is known to differ: additions first, in the order of the
// kinds, then deletions in reverse, and last what others have left.
func (r *Reconciler) work(ctx context.Context) {
	start := time.Now()
	defer r.report()
	r.takeEvents(start)
	r.wakeDue(start)
	if !start.Before(r.audit.at) && r.audit.kind == 0 {
		if err := r.auditLinks(start); err != nil {
			r.auditFailed(err, start)
			return
		}
		r.beginAudit(ctx, start)
	}
	r.lookDue(start)
	if !r.due() {
		return
	}
	if changed, healed := r.putLinks(start); changed {
		r.auditAlone(ctx, start, healed)
	}
	if r.audit.alone {
		return // until it is known what is there
	}
	for kind := KindAddress; kind < KindRoute && ctx.Err() == nil; kind++ {
		r.program(ctx, kind, put)
	}
	if ctx.Err() == nil && r.gate == nil {
		r.program(ctx, KindRoute, put)
	}
	r.greetDue(start)
	for kind := KindRoute; kind >= KindAddress && ctx.Err() == nil; kind-- {
		r.program(ctx, kind, remove)
	}
	r.removeLinks(start)
	r.sweep(ctx)
	r.metrics.apply.Observe(time.Since(start).Seconds())
}

// due tells whether there is anything to do.
func (r *Reconciler) due() bool {
	for _, t := range r.claims.trackers {
		if len(t.pending) > 0 {
			return true
		}
	}
	return len(r.stale)+len(r.keeper.greet) > 0
}

// wakeDue makes pending what is to be tried again now, and what others changed a while ago.
func (r *Reconciler) wakeDue(now time.Time) {
	for _, t := range r.claims.trackers {
		t.retryDue(now)
	}
	if !r.healAt.IsZero() && !now.Before(r.healAt) {
		r.healAt = time.Time{}
		for _, t := range r.claims.trackers {
			t.heal(now)
		}
	}
}

// next is when there will be something to do, if nothing happens until then.
func (r *Reconciler) next() time.Time {
	next := r.audit.at
	if r.audit.kind != 0 {
		next = r.audit.began.Add(r.every)
	}
	sooner := func(at time.Time) {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	sooner(r.healAt)
	sooner(r.fights.at)
	if r.keeper.looks == nil && r.audit.kind != KindPeer {
		sooner(r.keeper.at)
	}
	for _, t := range r.claims.trackers {
		sooner(t.retryAt)
	}
	return next
}
