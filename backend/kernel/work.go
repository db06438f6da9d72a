package kernel

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// pass is what one round of work did.
type pass struct {
	healed  [kinds]int
	news    [kinds]int // of what was healed, what is to be logged
	example Object     // of that
	failed  int        // objects that had not failed before
	reason  error
	victim  Object
}

// takeDesired takes over what was said since the last time, and tells whether there is a desired state at all.
func (r *Reconciler) takeDesired() bool {
	r.mu.Lock()
	if !r.inbox.replace && !r.begun {
		r.mu.Unlock()
		return false
	}
	in := r.inbox
	r.inbox = inbox{}
	r.mu.Unlock()

	r.begun = true
	for i, claims := range in.said {
		if in.replace && i == 0 {
			r.desired.replace(claims)
		} else {
			r.desired.update(claims)
		}
	}
	return true
}

// work brings the kernel to the desired state, as far as it is known to differ: additions first, in the order of the
// kinds, then deletions in reverse, and last what others have left. Sysctls and rules are applied beside what comes
// before routes.
func (r *Reconciler) work(ctx context.Context) {
	start := time.Now()
	r.pass = pass{}
	r.takeEvents(start)
	r.wakeDue(start)
	audit := r.auditing.kind != 0 || !start.Before(r.auditAt)
	due := r.due()
	if !audit && !due {
		r.report()
		return
	}
	if audit && r.auditing.kind == 0 {
		if err := r.auditLinks(); err != nil {
			r.auditFailed(err, start)
			r.report()
			return
		}
	}
	fresh, healed := r.putLinks(start)
	switch {
	case fresh:
		r.auditWhole(ctx, start, audit || healed)
	case audit:
		r.audit(ctx, start, due)
	}
	r.endWait()
	finish := r.applySets(ctx, start)
	// What our own changes to links did to what stands on them must not be taken for the deed of others: it is known
	// now, before all that is put right.
	r.takeEvents(start)
	for kind := KindAddress; kind < KindRoute && ctx.Err() == nil; kind++ {
		r.program(ctx, kind, put)
	}
	finish()
	if ctx.Err() == nil {
		r.program(ctx, KindRoute, put)
	}
	for kind := KindRoute; kind >= KindAddress && ctx.Err() == nil; kind-- {
		r.program(ctx, kind, remove)
	}
	r.removeLinks(start)
	r.sweep(ctx)
	r.metrics.apply.Observe(time.Since(start).Seconds())
	r.report()
}

// due tells whether there is anything to do.
func (r *Reconciler) due() bool {
	for _, t := range r.desired.tables {
		if t.count[dirty] > 0 {
			return true
		}
	}
	for _, s := range r.sets {
		if s.due || s.check {
			return true
		}
	}
	return r.linkUp
}

// wakeDue makes dirty what is to be tried again now, and what others changed a while ago.
func (r *Reconciler) wakeDue(now time.Time) {
	for _, t := range r.desired.tables {
		for it, f := range t.failures {
			if !f.at.After(now) {
				t.set(it, dirty)
			}
		}
	}
	for _, s := range r.sets {
		s.due = s.due || s.failure.err != nil && !s.failure.at.After(now)
	}
	if r.healAt.IsZero() || now.Before(r.healAt) {
		return
	}
	r.healAt = time.Time{}
	for _, t := range r.desired.tables {
		suspects := t.suspects
		t.suspects = nil
		for _, it := range suspects {
			if it.suspect {
				t.miss(it, true)
			}
		}
	}
}

// next is when there will be something to do, if nothing happens until then.
func (r *Reconciler) next() time.Time {
	if r.auditing.kind != 0 {
		return r.audited
	}
	next := r.auditAt
	for _, at := range []time.Time{r.healAt, r.fightsAt} {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for _, t := range r.desired.tables {
		for _, f := range t.failures {
			sooner(f.at)
		}
	}
	for _, s := range r.sets {
		if s.failure.err != nil {
			sooner(s.failure.at)
		}
	}
	return next
}

// endWait makes dirty what waited for a link, if one has come.
func (r *Reconciler) endWait() {
	if !r.linkUp {
		return
	}
	r.linkUp = false
	for _, t := range r.desired.tables {
		if t.count[waiting]+t.count[stuck] == 0 {
			continue
		}
		for _, it := range t.items {
			if it.state == waiting || it.state == stuck {
				t.set(it, dirty)
			}
		}
	}
	for _, s := range r.sets {
		s.due = s.due || s.waiting
	}
}

// auditSoon plans an audit; not right after another one, so that a flood of changes does not cost everything.
func (r *Reconciler) auditSoon(now time.Time) {
	at := now
	if earliest := r.audited.Add(10 * healDelay); at.Before(earliest) {
		at = earliest
	}
	if at.Before(r.auditAt) {
		r.auditAt = at
	}
}

// takeEvents takes over the kernel's notifications.
func (r *Reconciler) takeEvents(now time.Time) {
	events, lost := r.watch.take()
	if lost {
		r.log.Warn("notifications of the kernel were lost")
		r.auditSoon(now)
	}
	for _, e := range events {
		switch e.typ {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			r.observeLink(e, now)
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			r.observeAddress(decodeAddress(e.body, r.links.names), e.typ == unix.RTM_DELADDR, now)
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			decode := decodeNeighbour
			if e.body[0] == unix.AF_BRIDGE {
				decode = decodeFDB
			}
			r.observe(decode(e.body, r.links.names), e.typ == unix.RTM_DELNEIGH, now)
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			r.observe(decodeRoute(e.body, r.links.names), e.typ == unix.RTM_DELROUTE, now)
		}
	}
}

// observe compares an object in the kernel, or one that is gone from it, with what is desired.
func (r *Reconciler) observe(f found, gone bool, now time.Time) {
	if f.object == nil || f.mark == stray {
		return
	}
	t := r.desired.tables[f.object.Kind()]
	it := t.desired(f.object.Key())
	switch {
	case it == nil && (gone || f.mark != ours):
	case it != nil && !gone && f.mark == ours && it.value == f.object:
		t.trust(it)
	default:
		r.suspect(t, t.item(f.object), now)
	}
}

// observeAddress is observe for addresses. With its last IPv4 address a link loses its IPv4 routes, and the kernel does
// not say so.
func (r *Reconciler) observeAddress(f found, gone bool, now time.Time) {
	a, ok := f.object.(Address)
	if !ok {
		return
	}
	if gone && r.desired.users[a.Link] > 0 {
		r.auditSoon(now)
	}
	_, is := r.ourLink(a.Link)
	t := r.desired.tables[KindLink]
	if it := t.desired(linkKey(a.Link)); is && it != nil {
		if gone {
			r.suspect(t, it, now) // IPv6 may have been turned off on it
		}
		r.observe(f, gone, now)
	}
}

func (r *Reconciler) suspect(t *table, it *item, now time.Time) {
	t.doubt(it)
	if r.healAt.IsZero() {
		r.healAt = now.Add(healDelay)
	}
}

// observeLink keeps the names of links, and finds out whether what stands on one was lost.
func (r *Reconciler) observeLink(e event, now time.Time) {
	l := decodeLink(e.body)
	gone := e.typ == unix.RTM_DELLINK
	var before link
	if gone {
		before = r.links.drop(l.index)
	} else {
		before = r.links.set(l)
	}
	t := r.desired.tables[KindLink]
	for _, name := range []string{l.name, before.name} {
		if it := t.desired(linkKey(name)); it != nil && !r.inStep(it.value.(VXLAN)) {
			r.suspect(t, it, now)
			if gone {
				r.retry(now) // it may have been in the way
			}
		}
	}
	if r.desired.users[l.name] == 0 || !gone && before.index == l.index && before.up == l.up {
		return
	}
	if t.desired(linkKey(l.name)) == nil {
		r.auditSoon(now) // the kernel drops the IPv4 routes of a link that goes down, and does not say so
	}
	if !gone && l.up {
		r.linkUp = true
		r.retry(now)
	}
}

// retry lets everything that failed be tried again now, but for what is fought over.
func (r *Reconciler) retry(now time.Time) {
	for _, t := range r.desired.tables {
		for it, f := range t.failures {
			if f.err != errFought {
				f.at = now
				t.failures[it] = f
			}
		}
	}
}
