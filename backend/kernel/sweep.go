package kernel

import (
	"context"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// leftover is an object in the kernel that should not be there: the message that told of it.
type leftover struct {
	object Object
	body   []byte
}

// sweep removes what audits found too much. Where ours is to take the place of it, ours comes first: it may have to wait, for
// the gate of routes, say.
func (r *Reconciler) sweep(ctx context.Context) {
	var swept [kinds]int
	var waits []leftover
	for len(r.stale) > 0 && ctx.Err() == nil {
		n := min(len(r.stale), rtnl.BatchSize)
		waits = append(waits, r.sweepSome(r.stale[:n], &swept)...)
		r.stale = r.stale[n:]
	}
	r.stale = waits
	if args := counts(swept); len(args) > 0 {
		r.log.Info("swept what was left by others", args...)
	}
}

// sweepSome returns those that have to wait.
func (r *Reconciler) sweepSome(stale []leftover, swept *[kinds]int) (waits []leftover) {
	r.batch.Reset()
	some := make([]leftover, 0, len(stale))
	for _, s := range stale {
		kind := s.object.Kind()
		if e := r.claims.trackers[kind].wanted(s.object.Key()); e != nil && e.differs() {
			waits = append(waits, s)
			continue
		}
		some = append(some, s)
		r.batch.Echo(remove.message(entryKinds[kind].create), s.body)
	}
	failed, err := r.conn.Exec(&r.batch, nil)
	if err != nil {
		r.log.Warn("sweep failed", "err", err)
		return waits
	}
	for i, s := range some {
		switch err := failed[i]; {
		case err == nil:
			swept[s.object.Kind()]++
		case !absent(err):
			r.metrics.Errors.WithLabelValues(s.object.Kind().String()).Inc()
			r.log.Warn("sweep failed", "object", s.object, "err", err)
		}
	}
	return waits
}
