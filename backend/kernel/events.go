package kernel

import (
	"time"

	"golang.org/x/sys/unix"
)

// takeEvents takes in what the kernel told of the deeds of others.
func (r *Reconciler) takeEvents(now time.Time) {
	events, lost := r.watch.take()
	if lost {
		r.log.Warn("notifications of the kernel were lost")
		r.auditSoon(now)
	}
	for _, e := range events {
		gone := e.typ == unix.RTM_DELLINK || e.typ == unix.RTM_DELADDR || e.typ == unix.RTM_DELNEIGH || e.typ == unix.RTM_DELROUTE
		switch e.typ {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			r.observeLink(decodeLink(e.body), gone, now)
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			r.observeAddress(decodeAddress(e.body, r.links.names), gone, now)
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			decode := decodeNeighbour
			if e.body[0] == unix.AF_BRIDGE {
				decode = decodeFDB
			}
			r.observe(decode(e.body, r.links.names), gone, now)
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			r.observe(decodeRoute(e.body, r.links.names), gone, now)
		}
	}
}

// observe takes in an object as it is now in the kernel, or one that is gone from it. What is not ours is of interest only
// in the place of ours.
func (r *Reconciler) observe(f found, gone bool, now time.Time) {
	if f.object == nil || f.mark == stale {
		return
	}
	t := r.claims.trackers[f.object.Kind()]
	key := f.object.Key()
	if !gone && f.mark == ours {
		r.observed(t, t.entry(key), f.object, now)
	} else if e := t.entries[key]; e != nil {
		r.observed(t, e, nil, now)
	}
}

func (r *Reconciler) observed(t *tracker, e *tracked, had Object, now time.Time) {
	if t.observed(e, had) && r.healAt.IsZero() {
		r.healAt = now.Add(healDelay)
	}
}

// observeAddress is observe for addresses. With its last IPv4 address a link loses its IPv4 routes, and the kernel does
// not say so.
func (r *Reconciler) observeAddress(f found, gone bool, now time.Time) {
	a, ok := f.object.(Address)
	if !ok {
		return
	}
	if gone && r.claims.users[a.Link] > 0 {
		r.auditSoon(now)
	}
	t := r.claims.trackers[KindLink]
	e := t.wanted(linkKey(a.Link))
	if _, is := r.ourLink(a.Link); !is || e == nil {
		return
	}
	if gone {
		r.observed(t, e, nil, now) // IPv6 may have been turned off on it
	}
	r.observe(f, gone, now)
}

// observeLink keeps the names of links, and finds out whether what stands on one was lost.
func (r *Reconciler) observeLink(l link, gone bool, now time.Time) {
	var before link
	if gone {
		before = r.links.drop(l.index)
	} else {
		l = r.learn(l)
		before = r.links.set(l)
	}
	t := r.claims.trackers[KindLink]
	for _, name := range []string{l.name, before.name} {
		e := t.entries[linkKey(name)]
		if e == nil {
			continue
		}
		r.observed(t, e, r.linkHad(e), now)
		if gone {
			t.retryFailed(now) // what is gone may have been in the way
		}
	}
	again := !gone && before.index == l.index
	if r.claims.users[l.name] == 0 || again && before.up == l.up {
		return
	}
	if !again && before.index != 0 {
		r.forget(l.name, now)
	}
	if t.wanted(linkKey(l.name)) == nil {
		r.auditSoon(now) // the kernel drops the IPv4 routes of a link that goes down, and does not say so
	}
	if !gone && l.up {
		r.linkUp(l.name, now)
	}
}

// forget takes in that all is gone that stood on a link which is gone.
func (r *Reconciler) forget(name string, now time.Time) {
	r.forgetSessions(name, now)
	for kind := KindAddress; kind < kinds; kind++ {
		t := r.claims.trackers[kind]
		for _, e := range t.entries {
			if had, ok := e.had.(standing); ok && had.link() == name {
				r.observed(t, e, nil, now)
			}
		}
	}
}

// linkUp makes pending what waited for the link of the name, and what failed, perhaps for want of it.
func (r *Reconciler) linkUp(name string, now time.Time) {
	for _, t := range r.claims.trackers {
		t.unblock(name)
		t.retryFailed(now)
	}
}
