package kernel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// auditLinks reads all links, and makes dirty those that differ and those that an earlier run left.
func (r *Reconciler) auditLinks() error {
	all, err := dumpLinks(r.conn, &r.batch)
	if err != nil {
		return fmt.Errorf("dump links: %w", err)
	}
	before := r.links
	r.links = newLinkTable()
	for _, l := range all {
		r.links.set(l)
		if old := before.byName[l.name]; old.index != l.index {
			r.linkUp = true
		}
	}
	t := r.desired.tables[KindLink]
	for _, it := range t.items {
		if it.n > 0 && !r.inStep(it.value.(VXLAN)) {
			t.miss(it, true)
		}
	}
	for _, l := range all {
		if l.ownMade() && t.desired(linkKey(l.name)) == nil {
			t.miss(t.item(l.vxlan), true)
		}
	}
	r.publishLinks()
	return nil
}

// progress is how far an audit is that gives way to other work.
type progress struct {
	kind  Kind // to be compared next; 0: there is no such audit
	tries int  // how often that was begun in vain
}

// patience is how often the comparison of a kind gives way.
const patience = 3

// audit compares everything but links with the kernel, kind by kind. What differs is dirty then, what is too much is
// stale. Of sixty thousand peers that takes long: where there is other work, or some comes meanwhile, audit returns, and
// the next one goes on with the kind that it was at. Of that kind nothing is known then, so that nothing is judged by how
// it was before that work. The first audit does not give way: it saves to program what is there.
func (r *Reconciler) audit(ctx context.Context, now time.Time, work bool) {
	if r.audited.IsZero() {
		r.auditWhole(ctx, now, true)
		return
	}
	if r.auditing.kind == 0 {
		r.beginAudit(now)
	}
	if work && r.auditing.tries < patience {
		r.auditing.tries++
		return
	}
	for r.auditing.kind < kinds {
		stop := r.urgent
		if r.auditing.tries == patience {
			stop = never
		}
		err := r.auditKind(r.auditing.kind, true, stop)
		switch {
		case errors.Is(err, rtnl.ErrStopped):
			r.auditing.tries++
			return
		case err != nil:
			r.auditFailed(err, now)
			return
		}
		r.auditing = progress{kind: r.auditing.kind + 1}
	}
	r.endAudit(ctx, false)
}

// auditWhole is audit that does not give way, instead of what is left of another. heal: what differs does so because of
// others.
func (r *Reconciler) auditWhole(ctx context.Context, now time.Time, heal bool) {
	first := r.audited.IsZero()
	r.beginAudit(now)
	for kind := KindAddress; kind < kinds; kind++ {
		if err := r.auditKind(kind, heal, never); err != nil {
			r.auditFailed(err, now)
			return
		}
	}
	r.endAudit(ctx, first)
}

func (r *Reconciler) beginAudit(now time.Time) {
	r.audited, r.auditAt = now, now.Add(r.every)
	r.auditing = progress{kind: KindAddress}
}

func (r *Reconciler) endAudit(ctx context.Context, first bool) {
	r.auditing, r.auditBy = progress{}, failure{}
	for _, s := range r.sets {
		s.audit(ctx, first)
	}
	r.metrics.audit.Observe(time.Since(r.audited).Seconds())
}

// urgent tells whether there is other work than an audit.
func (r *Reconciler) urgent() bool {
	return len(r.wake) > 0 || len(r.watch.ready) > 0 || !r.healAt.IsZero() && !time.Now().Before(r.healAt)
}

func never() bool { return false }

// auditKind compares a kind with the kernel, unless it is stopped.
func (r *Reconciler) auditKind(kind Kind, heal bool, stop func() bool) error {
	c, err := rtnl.Dial(r.ns, rtnl.AnswersSize)
	if err != nil {
		return err
	}
	defer c.Close()
	r.dumps++
	a := &audit{r: r, conn: c, stop: stop}
	if err := a.dumps(kind); err != nil {
		return err
	}
	a.conclude(kind, heal)
	return nil
}

// auditFailed plans another audit.
func (r *Reconciler) auditFailed(err error, now time.Time) {
	if r.auditBy.err == nil {
		r.log.Warn("audit failed", "err", err)
	}
	r.auditing = progress{}
	r.auditBy = r.auditBy.again(err, now)
	r.auditAt = r.auditBy.at
}

// audit is one of them at work on one kind.
type audit struct {
	r      *Reconciler
	conn   *rtnl.Conn
	stop   func() bool
	stale  []leftover
	others []leftover // ours by their mark, with a key that is claimed with another value
}

// dumps reads all of a kind that may be ours, and only that: on a host with a full table of somebody else's routes too.
func (a *audit) dumps(kind Kind) error {
	if kind == KindRoute {
		return a.dumpRoutes()
	}
	ask, decode := dumpAddresses, decodeAddress
	switch kind {
	case KindNeighbour:
		ask, decode = dumpNeighbours, decodeNeighbour
	case KindFDB:
		ask, decode = dumpFDB, decodeFDB
	}
	for _, o := range a.r.desired.tables[KindLink].values() {
		l, ok := a.r.ourLink(o.(VXLAN).Name)
		if !ok {
			continue
		}
		a.r.batch.Reset()
		ask(&a.r.batch, l.index)
		if err := a.dump(decode); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("dump of %s: %w", l.name, err)
		}
	}
	return nil
}

func (a *audit) dumpRoutes() error {
	for _, protocol := range []uint8{RouteProtocol, unix.RTPROT_BOOT} {
		a.r.batch.Reset()
		dumpRoutes(&a.r.batch, protocol)
		if err := a.dump(decodeRoute); err != nil {
			return fmt.Errorf("dump routes of protocol %d: %w", protocol, err)
		}
	}
	return nil
}

func (a *audit) dump(decode func([]byte, map[int32]string) found) error {
	names := a.r.links.names
	return rtnl.Consistent(func() error {
		return a.conn.DumpOnce(&a.r.batch, a.stop, func(body []byte) { a.compare(decode(body, names), body) })
	})
}

// compare notes that an object is in the kernel.
func (a *audit) compare(f found, body []byte) {
	if f.object == nil || f.mark == foreign || f.mark == usurper {
		return
	}
	t := a.r.desired.tables[f.object.Kind()]
	it := t.desired(f.object.Key())
	switch {
	case f.mark == flannelVXLAN && !a.onOurs(f.object.(Route)):
		return
	case f.mark == flannelHostGW && (it == nil || it.value.(Route).Via != f.object.(Route).Via):
		return
	case f.mark == ours && it != nil && it.value == f.object:
		it.seen = a.r.dumps
		t.settle(it)
		return
	}
	s := leftover{f.object, append([]byte(nil), body...)}
	if f.mark == ours && it != nil {
		a.others = append(a.others, s)
	} else {
		a.stale = append(a.stale, s)
	}
}

func (a *audit) onOurs(route Route) bool {
	return a.r.desired.tables[KindLink].desired(linkKey(route.Link)) != nil
}

// conclude makes dirty what was not seen. Of a key that was seen with several values the others are stale; where only
// others were seen, the put replaces one.
func (a *audit) conclude(kind Kind, heal bool) {
	t := a.r.desired.tables[kind]
	if t.count[dirty] < len(t.items) { // not so at a first start: all is known to be missing
		for _, it := range t.items {
			if it.n > 0 && it.seen != a.r.dumps {
				t.miss(it, heal)
			}
		}
	}
	a.r.stale = append(a.r.stale, a.stale...)
	for _, s := range a.others {
		if t.desired(s.object.Key()).seen == a.r.dumps {
			a.r.stale = append(a.r.stale, s)
		}
	}
}
