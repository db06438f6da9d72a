package kernel

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// flight is a batch of one kind, and what became of it in the kernel.
type flight struct {
	batch  rtnl.Batch
	jobs   []*item // one for each request
	failed map[int]error
	err    error
	landed chan struct{} // closed when failed and err are known; nil: not under way
}

// start sends the batch. Nobody else may use c until it has landed.
func (f *flight) start(c *rtnl.Conn) {
	landed := make(chan struct{})
	f.landed = landed
	go func() {
		f.failed, f.err = c.Exec(&f.batch, nil)
		close(landed)
	}()
}

// land waits for a batch that is under way.
func (f *flight) land() {
	if f.landed != nil {
		<-f.landed
		f.landed = nil
	}
}

// program puts or removes the dirty objects of a kind, in batches. While the kernel works at one, the next is made. What
// fails does not keep the others.
func (r *Reconciler) program(ctx context.Context, kind Kind, op op) {
	t := r.desired.tables[kind]
	next, away := &r.flights[0], &r.flights[1]
	items := t.take(op)
	for i, it := range items {
		e := it.value.(entry)
		l, ok := r.ourLink(e.link())
		switch {
		case !ok && op == put:
			t.wait(it, r.without(e.link()))
			continue
		case !ok && kind != KindRoute: // gone with its link; a route of the key may be on another
			t.settle(it)
			continue
		}
		e.encode(&next.batch, op, l.index)
		if next.jobs = append(next.jobs, it); len(next.jobs) < rtnl.BatchSize {
			continue
		}
		away.land()
		next.start(r.conn)
		r.note(t, op, away)
		next, away = away, next
		if ctx.Err() != nil {
			for _, it := range items[i+1:] {
				t.enqueue(it)
			}
			break
		}
	}
	away.land()
	r.note(t, op, away)
	next.failed, next.err = r.conn.Exec(&next.batch, nil)
	r.note(t, op, next)
	for _, it := range r.refused {
		r.outcome(t, op, it, r.putAnew(it.value.(Route)), time.Now())
	}
	r.refused = r.refused[:0]
}

// note takes in what became of each request of a flight, and makes it ready for the next.
func (r *Reconciler) note(t *table, op op, f *flight) {
	now := time.Now()
	for i, it := range f.jobs {
		err := f.err
		if err == nil {
			err = f.failed[i]
		}
		if it.value.Kind() == KindRoute && op == put && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EEXIST)) {
			r.refused = append(r.refused, it)
			continue
		}
		r.outcome(t, op, it, err, now)
	}
	f.jobs, f.failed, f.err = f.jobs[:0], nil, nil
	f.batch.Reset()
}

// putAnew puts a route that the kernel has refused. IPv6 looks for the gateway of an onlink route as if onlink were not
// said, and refuses it where a route leads there over another link: a peer's subnet.0, by the very route that is to be
// replaced (ip6_route_check_nh_onlink in net/ipv6/route.c). So for a moment the gateway has a route of its own, and no
// packet is without one. IPv4 refuses it where it is there, but behind another: that one goes first.
func (r *Reconciler) putAnew(route Route) error {
	index := r.links.byName[route.Link].index
	r.batch.Reset()
	route.encodeGateway(&r.batch, put, index)
	route.encode(&r.batch, put, index)
	route.encodeGateway(&r.batch, remove, index)
	failed, err := r.conn.Exec(&r.batch, nil)
	if err != nil || failed[1] == nil {
		return err
	}
	r.batch.Reset()
	route.vacate(&r.batch)
	route.encode(&r.batch, put, index)
	if failed, err = r.conn.Exec(&r.batch, nil); err != nil {
		return err
	}
	return failed[1]
}

func (r *Reconciler) outcome(t *table, op op, it *item, err error, now time.Time) {
	switch {
	case err == nil:
		t.settle(it)
		if it.heal {
			r.healed(it.value.Kind(), it.value, 1, now)
		}
		if op == remove && it.value.Kind() == KindAddress {
			r.auditSoon(now) // the kernel may have dropped routes with it
		}
	case op == remove && absent(err):
		t.settle(it)
	case op == put && errors.Is(err, unix.ENODEV): // its link has just gone
		t.wait(it, waiting)
	default:
		r.fail(t, it, err, now)
	}
}

// fail keeps an item for another try.
func (r *Reconciler) fail(t *table, it *item, err error, now time.Time) {
	if _, again := t.failures[it]; !again && r.news(it.value.Kind(), it.value, 1, now) {
		r.pass.failed++
		r.pass.victim, r.pass.reason = it.value, err
	}
	r.metrics.errors.WithLabelValues(it.value.Kind().String()).Inc()
	t.fail(it, err, now)
}

// healed counts what others had undone. o is nil where a whole set was.
func (r *Reconciler) healed(kind Kind, o Object, n int, now time.Time) {
	r.pass.healed[kind] += n
	if r.news(kind, o, n, now) {
		r.pass.news[kind] += n
		r.pass.example = o
	}
}

// news tells whether to log what befell an object. What befalls it again and again is said once in a while.
func (r *Reconciler) news(kind Kind, o Object, n int, now time.Time) bool {
	key := Key{}
	if o != nil {
		key = o.Key()
	}
	if r.fightsAt.IsZero() {
		r.fightsAt = now.Add(forgotten)
	}
	if r.desired.tables[kind].round(key, now) {
		return true
	}
	r.fought[kind] += n
	r.prey = cmp.Or(o, r.prey)
	return false
}

// ourLink is the link of a name; of those that we make it must be what we made of it. Nothing of ours is on another.
func (r *Reconciler) ourLink(name string) (link, bool) {
	l, ok := r.links.byName[name]
	if it := r.desired.tables[KindLink].items[linkKey(name)]; ok && it != nil {
		ok = l.like(it.value.(VXLAN))
	}
	return l, ok
}

// without is the state of what stands on a link that is not there.
func (r *Reconciler) without(name string) state {
	t := r.desired.tables[KindLink]
	if _, fails := t.failures[t.items[linkKey(name)]]; fails {
		return stuck
	}
	return waiting
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
		n := min(len(r.stale), rtnl.BatchSize)
		r.sweepSome(r.stale[:n], &swept)
		r.stale = r.stale[n:]
	}
	r.stale = nil
	if args := counts(swept); len(args) > 0 {
		r.log.Info("swept what was left by others", args...)
	}
}

func (r *Reconciler) sweepSome(stale []leftover, swept *[kinds]int) {
	r.batch.Reset()
	stale = slices.DeleteFunc(stale, func(s leftover) bool {
		it := r.desired.tables[s.object.Kind()].desired(s.object.Key())
		return it != nil && it.state != settled
	})
	for _, s := range stale {
		r.batch.Echo(deletion(s.object.Kind()), s.body)
	}
	failed, err := r.conn.Exec(&r.batch, nil)
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
