package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

// patience is how often a kind is dumped in vain, because it changed meanwhile, before all else waits for that.
const patience = 3

// audit compares everything with the kernel, kind by kind. Each is dumped beside the loop, which goes on. A dump of what
// changes meanwhile says nothing, because it may have left out what does not: IPv6 skips as many routes as it has told
// of where it has lost its place (fib6_walk_continue in net/ipv6/ip6_fib.c).
type audit struct {
	at     time.Time // when the next one is to begin
	began  time.Time
	failed int   // how many have, one after the other
	err    error // why the last one failed

	kind   Kind   // that is being dumped; 0: there is no audit
	alone  bool   // nothing is programmed before it has ended
	first  bool   // none has ended yet: nobody is to blame for what differs
	ours   bool   // we are
	tries  int    // how often the kind was dumped in vain
	before uint64 // the tracker's changes when the dump began
	cancel context.CancelFunc
	pieces chan piece // of the dump

	stale, others []leftover // of the kind; the latter have a key that is claimed with another value
}

// piece is a part of a dump: messages without their headers. The last one has none.
type piece struct {
	bodies [][]byte
	looks  []look // at wireguard links, instead
	udp    []udpLook
	last   bool
	err    error
}

// auditSoon plans an audit; not right after another one, so that a flood of changes does not cost everything.
func (r *Reconciler) auditSoon(now time.Time) {
	at := now
	if earliest := r.audit.began.Add(10 * healDelay); at.Before(earliest) {
		at = earliest
	}
	if at.Before(r.audit.at) {
		r.audit.at = at
	}
}

// auditLinks reads all links, and takes in which differ, and which an earlier run left.
func (r *Reconciler) auditLinks(now time.Time) error {
	all, err := dumpLinks(r.conn, &r.batch)
	if err != nil {
		return fmt.Errorf("dump links: %w", err)
	}
	for index, l := range all {
		all[index] = r.learn(l)
	}
	before := r.links
	r.links = newLinkTable()
	for _, l := range all {
		r.links.set(l)
	}
	for name, l := range before.byName {
		if r.links.byName[name].index != l.index {
			r.forget(name, now)
		}
	}
	for name, l := range r.links.byName {
		if before.byName[name].index != l.index {
			r.linkUp(name, now)
		}
	}
	t := r.claims.trackers[KindLink]
	for _, e := range t.entries {
		t.observed(e, r.linkHad(e))
	}
	for _, l := range all {
		if own := l.own(); own != nil && t.entries[own.Key()] == nil {
			t.observed(t.entry(own.Key()), own)
		}
	}
	t.heal(now)
	r.publishLinks()
	return nil
}

// beginAudit begins one; the first is alone, because it saves to program what is there.
func (r *Reconciler) beginAudit(ctx context.Context, now time.Time) {
	first := r.audit.first
	if r.audit.cancel != nil {
		r.audit.cancel()
	}
	r.audit = audit{
		at: now.Add(r.every), began: now, failed: r.audit.failed, err: r.audit.err,
		kind: KindAddress, alone: first, first: first,
	}
	r.dump(ctx)
}

// auditAlone begins one, instead of another, after our own links changed: what stood on them may be gone. healed: because
// of others.
func (r *Reconciler) auditAlone(ctx context.Context, now time.Time, healed bool) {
	r.beginAudit(ctx, now)
	r.audit.alone, r.audit.ours = true, !healed
}

// dump begins to read what may be ours of the audit's kind.
func (r *Reconciler) dump(ctx context.Context) {
	kind := entryKinds[r.audit.kind]
	asks := make([]func(*rtnl.Batch), 0, len(kind.all))
	asks = append(asks, kind.all...)
	links := r.ourLinks()
	if kind.onLink != nil {
		for _, l := range links {
			if kind.ethernet && l.kind != "vxlan" {
				continue
			}
			asks = append(asks, func(b *rtnl.Batch) { kind.onLink(b, l.index) })
		}
	}
	t := r.claims.trackers[r.audit.kind]
	t.dump++
	r.audit.before = t.changes
	ctx, r.audit.cancel = context.WithCancel(ctx)
	pieces := make(chan piece)
	r.audit.pieces = pieces
	send := func(p piece) {
		select {
		case pieces <- p:
		case <-ctx.Done():
		}
	}
	if r.audit.kind == KindPeer {
		go func() { send(piece{last: true, looks: r.lookAt(links, 0), udp: r.lookAtUDP(links)}) }()
		return
	}
	go func() { send(piece{last: true, err: r.read(ctx, asks, send)}) }()
}

// read sends what the kernel answers, piece by piece. It runs beside the loop.
func (r *Reconciler) read(ctx context.Context, asks []func(*rtnl.Batch), send func(piece)) error {
	c, err := rtnl.Dial(r.ns, rtnl.AnswersSize)
	if err != nil {
		return err
	}
	defer c.Close()
	var b rtnl.Batch
	var p piece
	var room []byte
	flush := func() (stop bool) {
		if len(p.bodies) > 0 {
			send(p)
		}
		p, room = piece{}, nil
		return ctx.Err() != nil
	}
	for _, ask := range asks {
		b.Reset()
		ask(&b)
		err := c.DumpOnce(&b, flush, func(body []byte) {
			if room == nil {
				room = make([]byte, 0, 32<<10) // the kernel's piece, in one allocation
			}
			begin := len(room)
			room = append(room, body...)
			p.bodies = append(p.bodies, room[begin:len(room):len(room)])
		})
		flush()
		if err != nil && !errors.Is(err, unix.ENODEV) { // its link has just gone
			return err
		}
	}
	return nil
}

// compare takes in a piece of a dump, and tells whether there may be something to do then.
func (r *Reconciler) compare(ctx context.Context, p piece) bool {
	kind := entryKinds[r.audit.kind]
	for _, body := range p.bodies {
		r.compareOne(kind.decode(body, r.links.names), body)
	}
	if r.audit.kind == KindPeer {
		r.auditPeers(p.looks, time.Now())
		r.auditUDPPeers(p.udp)
	}
	switch {
	case !p.last:
		return false
	case errors.Is(p.err, netlink.ErrDumpInterrupted), p.err == nil && r.claims.trackers[r.audit.kind].changes != r.audit.before:
		r.audit.stale, r.audit.others = nil, nil
		if r.audit.tries++; r.audit.tries == 2*patience {
			r.auditFailed(fmt.Errorf("kind %s changes all the time: %w", r.audit.kind, netlink.ErrDumpInterrupted), time.Now())
			return true
		}
		r.audit.alone = r.audit.alone || r.audit.tries >= patience
		r.dump(ctx)
		return false
	case p.err != nil:
		r.auditFailed(fmt.Errorf("dump of kind %s: %w", r.audit.kind, p.err), time.Now())
		return true
	}
	r.conclude(time.Now())
	r.audit.tries = 0
	if r.audit.kind++; r.audit.kind < kinds {
		r.dump(ctx)
		return !r.audit.alone
	}
	r.endAudit()
	return true
}

// compareOne notes that an object is in the kernel.
func (r *Reconciler) compareOne(f found, body []byte) {
	if f.object == nil || f.mark == foreign || f.mark == conflicting {
		return
	}
	t := r.claims.trackers[f.object.Kind()]
	e := t.entries[f.object.Key()]
	switch {
	case f.mark == flannelVXLAN && r.claims.trackers[KindLink].wanted(linkKey(f.object.(Route).Link)) == nil:
	case f.mark == flannelIPIP && !r.isIPIP(f.object.(Route).Link):
	case f.mark == flannelPlain && !f.object.(Route).doneBy(e):
	case f.mark != ours || e == nil:
		r.audit.stale = append(r.audit.stale, leftover{f.object, body})
	case f.object != e.had && f.object != e.want:
		r.audit.others = append(r.audit.others, leftover{f.object, body})
	default:
		t.set(e, e.want, f.object)
		e.seen = t.dump
	}
}

// conclude takes in what was not seen. Of a key that was seen with several values the others are stale; where only
// others were seen, the put replaces one.
func (r *Reconciler) conclude(now time.Time) {
	t := r.claims.trackers[r.audit.kind]
	for _, s := range r.audit.others {
		switch e := t.entries[s.object.Key()]; {
		case e == nil:
		case e.seen == t.dump:
			r.audit.stale = append(r.audit.stale, s)
		default:
			t.observed(e, s.object)
			e.seen = t.dump
		}
	}
	for _, e := range t.entries {
		if e.had != nil && e.seen != t.dump {
			t.observed(e, nil)
		}
	}
	r.stale = slices.DeleteFunc(r.stale, func(s leftover) bool { return s.object.Kind() == r.audit.kind }) // it was found again, or is gone
	r.stale = append(r.stale, r.audit.stale...)
	r.audit.stale, r.audit.others = nil, nil
	if r.audit.first || r.audit.ours {
		for _, e := range t.lost {
			t.enqueue(e)
		}
		t.lost = nil
	}
	t.heal(now)
}

func (r *Reconciler) endAudit() {
	r.metrics.audit.Observe(time.Since(r.audit.began).Seconds())
	r.audit.cancel()
	r.audit = audit{at: r.audit.at, began: r.audit.began}
}

// auditFailed plans another audit.
func (r *Reconciler) auditFailed(err error, now time.Time) {
	if r.audit.err == nil {
		r.log.Warn("audit failed", "err", err)
	}
	if r.audit.cancel != nil {
		r.audit.cancel()
	}
	r.audit = audit{
		at: now.Add(task.Backoff(r.audit.failed)), began: now, failed: r.audit.failed + 1, err: err, first: r.audit.first,
	}
}
