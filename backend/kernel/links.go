package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// errNoUnderlay is why a link waits.
var errNoUnderlay = errors.New("its underlay link is missing")

// inStep tells whether a link is as desired, as far as is known.
func (r *Reconciler) inStep(v VXLAN) bool {
	underlay, ok := r.links.byName[v.Underlay]
	return ok && r.links.byName[v.Name].is(v, underlay.index)
}

// putLinks brings the dirty links there. It tells whether one was changed, which may have cost what stands on it, and
// whether others were the reason.
func (r *Reconciler) putLinks(now time.Time) (fresh, healed bool) {
	t := r.desired.tables[KindLink]
	links := t.take(put)
	// Those that are not there come first, with index 0: one may be there under a name that another is to have.
	slices.SortStableFunc(links, func(a, b *item) int { return cmp.Compare(r.indexOf(a), r.indexOf(b)) })
	for _, it := range links {
		v := it.value.(VXLAN)
		before := r.links.byName[v.Name]
		changed, err := r.putLink(v)
		switch {
		case errors.Is(err, errNoUnderlay):
			t.set(it, waiting)
			continue
		case err != nil:
			r.fail(t, it, err, now)
			continue
		}
		t.settle(it)
		if changed && it.heal {
			r.healed(it)
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

func (r *Reconciler) indexOf(it *item) int32 { return r.links.byName[it.value.(VXLAN).Name].index }

// publishLinks tells the watcher which links are ours.
func (r *Reconciler) publishLinks() {
	ours := make(map[int32]bool)
	for _, o := range r.desired.tables[KindLink].values() {
		if l, ok := r.links.byName[o.(VXLAN).Name]; ok {
			ours[l.index] = true
		}
	}
	r.watch.links.Store(&ours)
}

// putLink brings a link to v and tells whether it had to do anything. A link of the name that is no vxlan is not ours
// to change.
func (r *Reconciler) putLink(v VXLAN) (changed bool, err error) {
	underlay, ok := r.links.byName[v.Underlay]
	if !ok {
		return false, fmt.Errorf("%s: %w", v.Underlay, errNoUnderlay)
	}
	if err := r.rename(v); err != nil {
		return false, err
	}
	have, err := r.conn.linkByName(&r.batch, v.Name)
	r.batch.reset()
	switch {
	case errors.Is(err, unix.ENODEV):
		v.create(&r.batch, underlay.index)
	case err != nil:
		return false, err
	case have.kind != "vxlan":
		return false, fmt.Errorf("a link %s exists that is no vxlan", v.Name)
	case have.is(v, underlay.index):
		r.links.set(have)
		return false, nil
	case have.like(v):
		v.change(&r.batch, have, underlay.index)
	default:
		r.links.drop(have.index)
		deleteLink(&r.batch, have.index)
		v.create(&r.batch, underlay.index)
	}
	failed, err := r.conn.exec(&r.batch, nil)
	for _, e := range failed {
		err = errors.Join(err, e)
	}
	if err != nil {
		return false, err
	}
	return true, r.checkLink(v, underlay.index)
}

// rename gives v its name where it is there under another one of ours that it is not to have. Kernels before 6.2 rename
// no link that is up (EBUSY; bd039b5ea2a9): there it goes, to be made anew.
func (r *Reconciler) rename(v VXLAN) error {
	for _, l := range r.links.byName {
		it := r.desired.tables[KindLink].desired(linkKey(l.name))
		if !ownName.MatchString(l.name) || !l.like(v) || it != nil && l.like(it.value.(VXLAN)) {
			continue
		}
		r.batch.reset()
		renameLink(&r.batch, l.index, v.Name)
		failed, err := r.conn.exec(&r.batch, nil)
		if err == nil && failed[0] != nil {
			r.batch.reset()
			deleteLink(&r.batch, l.index)
			_, err = r.conn.exec(&r.batch, nil)
		}
		r.links.drop(l.index)
		return err
	}
	return nil
}

// checkLink reads a link that was just put. The kernel makes a link with another MTU than asked for, silently, where
// the underlay's does not allow it; asked to change it, it will say so.
func (r *Reconciler) checkLink(v VXLAN, underlay int32) error {
	have, err := r.conn.linkByName(&r.batch, v.Name)
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
		name := it.value.(VXLAN).Name
		err := r.conn.removeVXLAN(&r.batch, name)
		if err != nil && !absent(err) {
			r.fail(t, it, err, now)
			continue
		}
		t.settle(it)
		r.links.drop(r.links.byName[name].index)
		if err == nil {
			r.log.Info("removed", "link", name)
		}
	}
}

// removeVXLAN deletes a vxlan link; of another kind it is not ours.
func (c *conn) removeVXLAN(b *batch, name string) error {
	l, err := c.linkByName(b, name)
	if err != nil || l.kind != "vxlan" {
		return err
	}
	b.reset()
	deleteLink(b, l.index)
	failed, err := c.exec(b, nil)
	if err != nil {
		return err
	}
	return failed[0]
}
