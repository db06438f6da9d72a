package kernel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// auditLinks reads all links, and makes dirty those that differ and those that an earlier run left.
func (r *Reconciler) auditLinks() error {
	all, err := r.conn.links(&r.batch)
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
		if l.kind == "vxlan" && ownName.MatchString(l.name) && t.desired(linkKey(l.name)) == nil {
			t.miss(t.item(l.vxlan), true)
		}
	}
	r.publishLinks()
	return nil
}

// audit compares everything but links with the kernel. What differs is dirty then, what is too much is stale. heal: what
// differs does so because of others.
func (r *Reconciler) audit(ctx context.Context, now time.Time, heal bool) {
	r.audits++
	r.audited, r.auditAt = now, now.Add(r.every)
	r.auditBy = failure{}
	r.stale = nil
	a := &audit{r: r}
	if err := a.dumps(); err != nil {
		r.auditFailed(err, now)
		return
	}
	a.conclude(heal)
	for _, s := range r.sets {
		s.audit(ctx, r.audits == 1)
	}
	r.metrics.audit.Observe(time.Since(now).Seconds())
}

// auditFailed plans another audit.
func (r *Reconciler) auditFailed(err error, now time.Time) {
	r.log.Warn("audit failed", "err", err)
	r.auditBy = r.auditBy.again(err, now)
	r.auditAt = r.auditBy.at
}

// audit is one of them at work.
type audit struct {
	r      *Reconciler
	others []leftover // ours by their mark, with a key that is claimed with another value
}

// dumps reads all that may be ours, and only that: on a host with a full table of somebody else's routes too.
func (a *audit) dumps() error {
	r := a.r
	for _, o := range r.desired.tables[KindLink].values() {
		l, ok := r.links.byName[o.(VXLAN).Name]
		if !ok {
			continue
		}
		for _, d := range []struct {
			ask    func(*batch, int32)
			decode func([]byte, map[int32]string) found
		}{{dumpAddresses, decodeAddress}, {dumpNeighbours, decodeNeighbour}, {dumpFDB, decodeFDB}} {
			r.batch.reset()
			d.ask(&r.batch, l.index)
			err := r.conn.dump(&r.batch, func(body []byte) { a.compare(d.decode(body, r.links.names), body) })
			if err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("dump of %s: %w", l.name, err)
			}
		}
	}
	for _, protocol := range []uint8{RouteProtocol, unix.RTPROT_BOOT} {
		r.batch.reset()
		dumpRoutes(&r.batch, protocol)
		err := r.conn.dump(&r.batch, func(body []byte) { a.compare(decodeRoute(body, r.links.names), body) })
		if err != nil {
			return fmt.Errorf("dump routes of protocol %d: %w", protocol, err)
		}
	}
	return nil
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
		it.seen = a.r.audits
		t.settle(it)
		return
	}
	s := leftover{f.object, append([]byte(nil), body...)}
	if f.mark == ours && it != nil {
		a.others = append(a.others, s)
	} else {
		a.r.stale = append(a.r.stale, s)
	}
}

func (a *audit) onOurs(route Route) bool {
	return a.r.desired.tables[KindLink].desired(linkKey(route.Link)) != nil
}

// conclude makes dirty what was not seen. Of a key that was seen with several values the others are stale; where only
// others were seen, the put replaces one.
func (a *audit) conclude(heal bool) {
	for kind := KindAddress; kind < kinds; kind++ {
		t := a.r.desired.tables[kind]
		for _, it := range t.items {
			if it.n > 0 && it.seen != a.r.audits {
				t.miss(it, heal)
			}
		}
	}
	for _, s := range a.others {
		if a.r.desired.tables[s.object.Kind()].desired(s.object.Key()).seen == a.r.audits {
			a.r.stale = append(a.r.stale, s)
		}
	}
}
