package kernel

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// program puts or removes the dirty objects of a kind, in batches. What fails does not keep the others.
func (r *Reconciler) program(ctx context.Context, kind Kind, op op) {
	t := r.desired.tables[kind]
	r.jobs = r.jobs[:0]
	r.batch.reset()
	items := t.take(op)
	for i, it := range items {
		e := it.value.(entry)
		l, ok := r.links.byName[e.link()]
		switch {
		case !ok && op == put:
			t.set(it, waiting)
			continue
		case !ok && kind != KindRoute: // gone with its link; a route of the key may be on another
			t.settle(it)
			continue
		}
		e.encode(&r.batch, op, l.index)
		if r.jobs = append(r.jobs, it); len(r.jobs) < batchSize {
			continue
		}
		r.flush(t, op)
		if ctx.Err() != nil {
			for _, it := range items[i+1:] {
				t.enqueue(it)
			}
			return
		}
	}
	r.flush(t, op)
}

// flush sends the batch and notes what became of each request.
func (r *Reconciler) flush(t *table, op op) {
	failed, err := r.conn.exec(&r.batch, nil)
	now := time.Now()
	for i, it := range r.jobs {
		jobErr := err
		if err == nil {
			jobErr = failed[i]
		}
		if route, ok := it.value.(Route); ok && op == put && (errors.Is(jobErr, unix.EINVAL) || errors.Is(jobErr, unix.EEXIST)) {
			jobErr = r.putAnew(route)
		}
		r.outcome(t, op, it, jobErr, now)
	}
	r.jobs = r.jobs[:0]
	r.batch.reset()
}

// putAnew puts a route that the kernel has refused. IPv6 looks for the gateway of an onlink route as if onlink were not
// said, and refuses it where a route leads there over another link: a peer's subnet.0, by the very route that is to be
// replaced (ip6_route_check_nh_onlink in net/ipv6/route.c). So for a moment the gateway has a route of its own, and no
// packet is without one. IPv4 refuses it where it is there, but behind another: that one goes first.
func (r *Reconciler) putAnew(route Route) error {
	index := r.links.byName[route.Link].index
	r.batch.reset()
	route.encodeGateway(&r.batch, put, index)
	route.encode(&r.batch, put, index)
	route.encodeGateway(&r.batch, remove, index)
	failed, err := r.conn.exec(&r.batch, nil)
	if err != nil || failed[1] == nil {
		return err
	}
	r.batch.reset()
	route.vacate(&r.batch)
	route.encode(&r.batch, put, index)
	if failed, err = r.conn.exec(&r.batch, nil); err != nil {
		return err
	}
	return failed[1]
}

func (r *Reconciler) outcome(t *table, op op, it *item, err error, now time.Time) {
	switch {
	case err == nil:
		t.settle(it)
		if it.heal {
			r.healed(it)
		}
		if op == remove && it.value.Kind() == KindAddress {
			r.auditSoon(now) // the kernel may have dropped routes with it
		}
	case op == remove && absent(err):
		t.settle(it)
	case op == put && errors.Is(err, unix.ENODEV): // its link has just gone
		t.set(it, waiting)
	default:
		r.fail(t, it, err, now)
	}
}

// fail keeps an item for another try.
func (r *Reconciler) fail(t *table, it *item, err error, now time.Time) {
	if _, again := t.failures[it]; !again {
		r.pass.failed++
		r.pass.victim, r.pass.reason = it.value, err
	}
	r.metrics.errors.WithLabelValues(it.value.Kind().String()).Inc()
	t.fail(it, err, now)
}

// healed counts an item.
func (r *Reconciler) healed(it *item) {
	r.pass.healed[it.value.Kind()]++
	r.pass.example = it.value
}

// absent tells whether a deletion failed because there was nothing to delete.
func absent(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.EADDRNOTAVAIL},
		func(e error) bool { return errors.Is(err, e) })
}

// leftover is an object in the kernel that should not be there: the message that told of it.
type leftover struct {
	object Object
	body   []byte
}

// sweep removes what the last audit found too much. Where ours is to take the place of it, ours comes first.
func (r *Reconciler) sweep(ctx context.Context) {
	var swept [kinds]int
	for len(r.stale) > 0 && ctx.Err() == nil {
		n := min(len(r.stale), batchSize)
		r.sweepSome(r.stale[:n], &swept)
		r.stale = r.stale[n:]
	}
	r.stale = nil
	if args := counts(swept); len(args) > 0 {
		r.log.Info("swept what was left by others", args...)
	}
}

func (r *Reconciler) sweepSome(stale []leftover, swept *[kinds]int) {
	r.batch.reset()
	stale = slices.DeleteFunc(stale, func(s leftover) bool {
		it := r.desired.tables[s.object.Kind()].desired(s.object.Key())
		return it != nil && it.state != settled
	})
	for _, s := range stale {
		r.batch.echo(deletion(s.object.Kind()), s.body)
	}
	failed, err := r.conn.exec(&r.batch, nil)
	if err != nil {
		r.log.Warn("sweep failed", "err", err)
		return
	}
	for i, s := range stale {
		switch err := failed[i]; {
		case err == nil:
			swept[s.object.Kind()]++
		case !absent(err):
			r.metrics.errors.WithLabelValues(s.object.Kind().String()).Inc()
			r.log.Warn("sweep failed", "object", s.object, "err", err)
		}
	}
}

// deletion is the type of the request that deletes an entry of the kind.
func deletion(kind Kind) uint16 {
	switch kind {
	case KindAddress:
		return unix.RTM_DELADDR
	case KindRoute:
		return unix.RTM_DELROUTE
	}
	return unix.RTM_DELNEIGH
}
