package kernel

import (
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
	jobs   []*tracked // one for each request
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

// program puts or removes the pending objects of a kind, in batches. While the kernel works at one, the next is made. What
// fails does not keep the others.
func (r *Reconciler) program(ctx context.Context, kind Kind, op op) {
	if kind == KindPeer {
		r.programPeers(ctx, op)
		return
	}
	t := r.claims.trackers[kind]
	next, away := &r.flights[0], &r.flights[1]
	pending := t.take(op)
	for i, e := range pending {
		o := e.object().(entry)
		l, ok := r.ourLink(o.link())
		switch {
		case o.link() == "": // it needs none
		case !ok && op == put:
			t.block(e, o.link())
			continue
		case !ok && kind != KindRoute: // gone with its link; a route of the key may be on another
			t.done(e)
			continue
		}
		o.encode(&next.batch, op, l.index)
		if next.jobs = append(next.jobs, e); len(next.jobs) < rtnl.BatchSize {
			continue
		}
		away.land()
		next.start(r.conn)
		r.note(t, op, away)
		next, away = away, next
		if ctx.Err() != nil {
			for _, e := range pending[i+1:] {
				t.enqueue(e)
			}
			break
		}
	}
	away.land()
	r.note(t, op, away)
	next.failed, next.err = r.conn.Exec(&next.batch, nil)
	r.note(t, op, next)
	for _, e := range r.refused {
		r.outcome(t, op, e, r.putAnew(e.want.(Route)), time.Now())
	}
	r.refused = r.refused[:0]
}

// note takes in what became of each request of a flight, and makes it ready for the next.
func (r *Reconciler) note(t *tracker, op op, f *flight) {
	now := time.Now()
	for i, e := range f.jobs {
		err := f.err
		if err == nil {
			err = f.failed[i]
		}
		if _, ok := e.object().(Route); ok && op == put && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EEXIST)) {
			r.refused = append(r.refused, e)
			continue
		}
		r.outcome(t, op, e, err, now)
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
	var failed map[int]error
	var err error
	if route.Via.IsValid() {
		r.batch.Reset()
		route.encodeGateway(&r.batch, put, index)
		route.encode(&r.batch, put, index)
		route.encodeGateway(&r.batch, remove, index)
		if failed, err = r.conn.Exec(&r.batch, nil); err != nil || failed[1] == nil {
			return err
		}
	}
	r.batch.Reset()
	route.vacate(&r.batch)
	route.encode(&r.batch, put, index)
	if failed, err = r.conn.Exec(&r.batch, nil); err != nil {
		return err
	}
	return failed[1]
}

func (r *Reconciler) outcome(t *tracker, op op, e *tracked, err error, now time.Time) {
	o := e.object()
	switch {
	case err == nil:
		if e.lost {
			r.healed(o, now)
		}
		t.done(e)
		if op == remove && o.Kind() == KindAddress {
			r.auditSoon(now) // the kernel may have dropped routes with it
		}
	case op == remove && absent(err):
		t.done(e)
	case op == put && errors.Is(err, unix.ENODEV) && o.(standing).link() != "": // its link has just gone
		t.block(e, o.(standing).link())
	default:
		if a, ok := o.(Address); ok && errors.Is(err, unix.EACCES) { // IPv6 is off on its link (ipv6_add_addr)
			links := r.claims.trackers[KindLink]
			if e := links.wanted(linkKey(a.Link)); e != nil {
				r.observed(links, e, nil, now)
			}
		}
		r.failed(t, e, err, now)
	}
}

// failed keeps what could not be programmed for another try.
func (r *Reconciler) failed(t *tracker, e *tracked, err error, now time.Time) {
	o := e.object()
	again := t.fails(o.Key())
	r.metrics.Errors.WithLabelValues(o.Kind().String()).Inc()
	if r.news(o, err, now) && !again {
		r.pass.failed++
		r.pass.victim, r.pass.reason = o, err
	}
}

// absent tells whether a deletion failed because there was nothing to delete.
func absent(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.EADDRNOTAVAIL},
		func(e error) bool { return errors.Is(err, e) })
}
