package kernel

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// job is one request of a batch.
type job struct {
	key  Object
	heal bool
}

// program puts or removes the dirty objects of a kind, in batches. What fails does not keep the others.
func (r *Reconciler) program(ctx context.Context, kind Kind, op op) {
	t := r.desired.tables[kind]
	r.jobs = r.jobs[:0]
	r.batch.reset()
	for key, heal := range t.dirty {
		o := key
		c := t.claims[key]
		switch {
		case (c != nil) != (op == put):
			continue
		case c != nil:
			o = c.value
		}
		e := o.(entry)
		l, ok := r.links.byName[e.link()]
		switch {
		case !ok && op == put:
			delete(t.dirty, key)
			t.waiting[key] = heal
			continue
		case !ok && e.link() != "": // gone with its link
			t.settle(key)
			continue
		}
		e.encode(&r.batch, op, l.index)
		if r.jobs = append(r.jobs, job{key, heal}); len(r.jobs) == batchSize {
			r.flush(t, op)
			if ctx.Err() != nil {
				return
			}
		}
	}
	r.flush(t, op)
}

// flush sends the batch and notes what became of each request.
func (r *Reconciler) flush(t *table, op op) {
	failed, err := r.conn.exec(&r.batch, nil)
	now := time.Now()
	for i, j := range r.jobs {
		jobErr := err
		if err == nil {
			jobErr = failed[i]
		}
		if route, ok := j.key.(Route); ok && op == put && errors.Is(jobErr, unix.EINVAL) {
			jobErr = r.putAnew(t.claims[route].value.(Route))
		}
		r.outcome(t, op, j, jobErr, now)
	}
	r.jobs = r.jobs[:0]
	r.batch.reset()
}

// putAnew removes the route that r is to replace, and puts r. IPv6 looks for the gateway of an onlink route as if
// onlink were not said, and refuses it where a route leads there over another link: a peer's subnet.0, by the very
// route that is to be replaced (ip6_route_check_nh_onlink in net/ipv6/route.c).
func (r *Reconciler) putAnew(route Route) error {
	r.batch.reset()
	route.encode(&r.batch, remove, 0)
	route.encode(&r.batch, put, r.links.byName[route.Link].index)
	failed, err := r.conn.exec(&r.batch, nil)
	if err != nil {
		return err
	}
	return failed[1]
}

func (r *Reconciler) outcome(t *table, op op, j job, err error, now time.Time) {
	switch {
	case err == nil:
		t.settle(j.key)
		if j.heal {
			r.healed(j.key, 1)
		}
		if op == remove && j.key.Kind() == KindAddress {
			r.auditSoon(now) // the kernel may have dropped routes with it
		}
	case op == remove && absent(err):
		t.settle(j.key)
	case op == put && errors.Is(err, unix.ENODEV): // its link has just gone
		delete(t.dirty, j.key)
		t.waiting[j.key] = j.heal
	default:
		r.fail(t, j.key, err, now)
	}
}

// fail keeps key for another try.
func (r *Reconciler) fail(t *table, key Object, err error, now time.Time) {
	if _, again := t.failed[key]; !again {
		r.pass.failed++
		r.pass.victim, r.pass.reason = key, err
		if c := t.claims[key]; c != nil {
			r.pass.victim = c.value
		}
	}
	r.metrics.errors.WithLabelValues(key.Kind().String()).Inc()
	t.fail(key, err, now)
}

// healed counts n objects of the key's kind.
func (r *Reconciler) healed(key Object, n int) {
	r.pass.healed[key.Kind()] += n
	r.pass.example = key
	if c := r.desired.tables[key.Kind()].claims[key]; c != nil {
		r.pass.example = c.value
	}
}

// absent tells whether a deletion failed because there was nothing to delete.
func absent(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.EADDRNOTAVAIL},
		func(e error) bool { return errors.Is(err, e) })
}

// leftover is an object in the kernel that should not be there: the message that told of it.
type leftover struct {
	key  Object
	body []byte
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
		t := r.desired.tables[s.key.Kind()]
		return t.claims[s.key] != nil && !t.settled(s.key)
	})
	for _, s := range stale {
		r.batch.echo(deletion(s.key.Kind()), s.body)
	}
	failed, err := r.conn.exec(&r.batch, nil)
	if err != nil {
		r.log.Warn("sweep failed", "err", err)
		return
	}
	for i, s := range stale {
		switch err := failed[i]; {
		case err == nil:
			swept[s.key.Kind()]++
		case !absent(err):
			r.metrics.errors.WithLabelValues(s.key.Kind().String()).Inc()
			r.log.Warn("sweep failed", "object", s.key, "err", err)
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
