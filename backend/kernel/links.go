package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// errNoUnderlay is why a link waits.
var errNoUnderlay = errors.New("its underlay link is missing")

// inStep tells whether a link is as desired, as far as is known.
func (r *Reconciler) inStep(v VXLAN) bool {
	underlay, ok := r.below(v)
	return ok && r.links.byName[v.Name].is(v, underlay.index)
}

// below is the link that is to carry v; of index 0 if any may.
func (r *Reconciler) below(v VXLAN) (l link, ok bool) {
	l, ok = r.links.byName[v.Underlay]
	return l, ok || v.Underlay == ""
}

// putLinks brings the dirty links there. It tells whether one was changed, which may have cost what stands on it, and
// whether others were the reason.
func (r *Reconciler) putLinks(now time.Time) (fresh, healed bool) {
	t := r.desired.tables[KindLink]
	items := t.take(put)
	if len(items) > 0 {
		if err := r.renameLinks(items); err != nil {
			r.log.Warn("links keep their names", "err", err)
		}
	}
	for _, it := range items {
		v := it.value.(VXLAN)
		before := r.links.byName[v.Name]
		changed, err := r.putLink(v)
		if err == nil {
			err = prepareIPv6(r.ns, v)
		}
		switch {
		case errors.Is(err, errNoUnderlay):
			t.wait(it, waiting)
			continue
		case err != nil:
			r.fail(t, it, err, now)
			continue
		}
		t.settle(it)
		if changed && it.heal {
			r.healed(KindLink, v, 1, now)
			healed = true
		}
		after := r.links.byName[v.Name]
		if changed || before.index != after.index || before.up != after.up {
			fresh, r.linkUp = true, true
			r.setOf(KindSysctl).due = true // those of a link begin anew with it
		}
	}
	r.publishLinks()
	return fresh, healed
}

// publishLinks tells the watcher which links are ours.
func (r *Reconciler) publishLinks() {
	ours := make(map[int32]bool)
	for _, o := range r.desired.tables[KindLink].values() {
		if l, ok := r.ourLink(o.(VXLAN).Name); ok {
			ours[l.index] = true
		}
	}
	r.watch.links.Store(&ours)
}

// putLink brings a link to v and tells whether it had to do anything. A link of the name that is none that we could have
// made is not ours to change.
func (r *Reconciler) putLink(v VXLAN) (changed bool, err error) {
	underlay, ok := r.below(v)
	if !ok {
		return false, fmt.Errorf("%s: %w", v.Underlay, errNoUnderlay)
	}
	have, err := linkByName(r.conn, &r.batch, v.Name)
	r.batch.Reset()
	switch {
	case errors.Is(err, unix.ENODEV):
		v.create(&r.batch, underlay.index)
	case err != nil:
		return false, err
	case !have.ours(have.vxlan):
		return false, fmt.Errorf("a link %s exists that is not overlayd's: remove or rename it", v.Name)
	case have.is(v, underlay.index):
		r.links.set(have)
		return false, nil
	case have.like(v) && (v.Underlay != "" || have.underlay == 0): // the kernel unbinds none
		v.change(&r.batch, have, underlay.index)
	default:
		r.links.drop(have.index)
		encodeDeleteLink(&r.batch, have.index)
		v.create(&r.batch, underlay.index)
	}
	failed, err := r.conn.Exec(&r.batch, nil)
	for _, e := range failed {
		err = errors.Join(err, e)
	}
	if err != nil {
		return false, err
	}
	return true, r.checkLink(v, underlay.index)
}

// renameLinks gives links their names that are there under another one of ours, which they are not to have.
func (r *Reconciler) renameLinks(items []*item) error {
	all, err := dumpLinks(r.conn, &r.batch)
	if err != nil {
		return fmt.Errorf("dump links: %w", err)
	}
	now := newLinkTable()
	for _, l := range all {
		now.set(l)
	}
	index := func(it *item) int32 { return now.byName[it.value.(VXLAN).Name].index }
	// Those that are not there, of index 0, come first: what they are called now may be what others are to be called.
	slices.SortStableFunc(items, func(a, b *item) int { return cmp.Compare(index(a), index(b)) })
	for _, it := range items {
		if index(it) != 0 {
			continue
		}
		for _, l := range now.byName {
			if r.misnamed(l, it.value.(VXLAN)) {
				now.drop(l.index)
				r.links.drop(l.index)
				if err := r.rename(l, it.value.(VXLAN).Name); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// misnamed tells whether l should be called as v is.
func (r *Reconciler) misnamed(l link, v VXLAN) bool {
	it := r.desired.tables[KindLink].desired(linkKey(l.name))
	return l.ownMade() && l.like(v) && (it == nil || !l.like(it.value.(VXLAN)))
}

// rename gives l a name that is free. Kernels before 6.2 rename no link that is up (EBUSY; bd039b5ea2a9): there it goes,
// to be made anew.
func (r *Reconciler) rename(l link, name string) error {
	r.batch.Reset()
	encodeRenameLink(&r.batch, l.index, name)
	failed, err := r.conn.Exec(&r.batch, nil)
	if err == nil && failed[0] != nil {
		r.batch.Reset()
		encodeDeleteLink(&r.batch, l.index)
		_, err = r.conn.Exec(&r.batch, nil)
	}
	return err
}

// checkLink reads a link that was just put. The kernel makes a link with another MTU than asked for, silently, where
// the underlay's does not allow it; asked to change it, it will say so.
func (r *Reconciler) checkLink(v VXLAN, underlay int32) error {
	have, err := linkByName(r.conn, &r.batch, v.Name)
	if err != nil {
		return err
	}
	r.links.set(have)
	if !have.is(v, underlay) {
		have.vxlan.Underlay = r.links.names[have.underlay]
		return fmt.Errorf("the kernel made it otherwise: %s", have.vxlan)
	}
	return nil
}

// removeLinks deletes the links that are no longer desired.
func (r *Reconciler) removeLinks(now time.Time) {
	t := r.desired.tables[KindLink]
	for _, it := range t.take(remove) {
		v := it.value.(VXLAN)
		l, err := linkByName(r.conn, &r.batch, v.Name)
		ours := err == nil && l.ours(v)
		if ours {
			err = deleteLink(r.conn, &r.batch, l)
		}
		if err != nil && !absent(err) {
			r.fail(t, it, err, now)
			continue
		}
		t.settle(it)
		if !ours {
			continue
		}
		r.links.drop(l.index)
		if err == nil && (!it.heal || r.news(KindLink, v, 1, now)) {
			r.log.Info("removed", "link", v.Name)
		}
	}
}

// deleteLink deletes a link.
func deleteLink(c *rtnl.Conn, b *rtnl.Batch, l link) error {
	b.Reset()
	encodeDeleteLink(b, l.index)
	failed, err := c.Exec(b, nil)
	if err != nil {
		return err
	}
	return failed[0]
}
