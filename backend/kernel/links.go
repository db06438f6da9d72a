package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// drifted is a link that we made, and that is not as it should be.
type drifted struct{ Link }

// linkHad is what the kernel has in the place of a link, as far as is known.
func (r *Reconciler) linkHad(e *tracked) Object {
	as := e.object().(Link)
	l, ok := r.links.byName[as.name()]
	switch {
	case !ok || !as.made(l):
		return nil
	case e.want == nil:
		return e.had
	case r.inStep(as):
		return as
	}
	return drifted{as}
}

// inStep tells whether a link is as desired, as far as is known.
func (r *Reconciler) inStep(v Link) bool {
	underlay, ok := r.below(v)
	return ok && v.is(r.links.byName[v.name()], underlay.index)
}

// below is the link that is to carry v; of index 0 if any may.
func (r *Reconciler) below(v Link) (l link, ok bool) {
	l, ok = r.links.byName[v.below()]
	return l, ok || v.below() == ""
}

// ourLink is the link of a name; of those that we make it must be what we made of it. Nothing of ours is on another.
func (r *Reconciler) ourLink(name string) (link, bool) {
	l, ok := r.links.byName[name]
	if e := r.claims.trackers[KindLink].entries[linkKey(name)]; ok && e != nil {
		ok = e.object().(Link).like(l)
	}
	return l, ok
}

// ourLinks are the links that we made, and that are there.
func (r *Reconciler) ourLinks() (all []link) {
	for _, o := range r.claims.trackers[KindLink].values() {
		if l, ok := r.ourLink(o.(Link).name()); ok {
			all = append(all, l)
		}
	}
	return all
}

// publishLinks tells the watcher which links are ours.
func (r *Reconciler) publishLinks() {
	ours := make(map[int32]bool)
	for _, l := range r.ourLinks() {
		ours[l.index] = true
	}
	r.watch.links.Store(&ours)
}

// putLinks brings the pending links there. It tells whether one was changed, which may have cost what stands on it, and
// whether others were the reason.
func (r *Reconciler) putLinks(now time.Time) (changed, healed bool) {
	t := r.claims.trackers[KindLink]
	pending := t.take(put)
	if len(pending) == 0 {
		return false, false
	}
	for _, e := range pending {
		v := e.want.(Link)
		if _, ok := r.below(v); !ok {
			t.block(e, v.below())
			continue
		}
		before := r.links.byName[v.name()]
		put, err := r.putLink(v)
		if err == nil {
			err = r.prepare(v)
		}
		if err != nil {
			r.failed(t, e, err, now)
			continue
		}
		if put && e.lost {
			r.healed(v, now)
			healed = true
		}
		t.done(e)
		if after := r.links.byName[v.name()]; put || before.index != after.index || before.up != after.up {
			changed = true
			r.linkUp(v.name(), now)
		}
	}
	r.publishLinks()
	return changed, healed
}

// putLink brings a link to v and tells whether it had to do anything. A link of the name that is none that we could have
// made is not ours to change.
func (r *Reconciler) putLink(v Link) (changed bool, err error) {
	if v, ok := v.(handmade); ok {
		return v.put(r)
	}
	return r.putPlain(v)
}

// putPlain brings a link there by the requests of rtnetlink.
func (r *Reconciler) putPlain(v Link) (changed bool, err error) {
	underlay, _ := r.below(v)
	have, err := linkByName(r.conn, &r.batch, v.name())
	r.batch.Reset()
	switch {
	case errors.Is(err, unix.ENODEV):
		v.create(&r.batch, underlay.index)
	case err != nil:
		return false, err
	case have.info == nil || !have.info.adoptable():
		return false, fmt.Errorf("a link %s exists that is not overlayd's: remove or rename it", v.name())
	case v.is(have, underlay.index):
		r.links.set(have)
		return false, nil
	case v.like(have):
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

// checkLink reads a link that was just put. The kernel makes a link with another MTU than asked for, silently, where
// the underlay's does not allow it; asked to change it, it will say so.
func (r *Reconciler) checkLink(v Link, underlay int32) error {
	have, err := linkByName(r.conn, &r.batch, v.name())
	if err != nil {
		return err
	}
	r.links.set(have)
	if !v.is(have, underlay) {
		return fmt.Errorf("the kernel made it otherwise: MTU %d, MAC %s, on %s", have.mtu, have.mac, cmp.Or(r.links.names[underlay], "any link"))
	}
	return nil
}

// removeLinks deletes the links that are no longer desired.
func (r *Reconciler) removeLinks(now time.Time) {
	t := r.claims.trackers[KindLink]
	for _, e := range t.take(remove) {
		v := e.had.(Link)
		l, err := linkByName(r.conn, &r.batch, v.name())
		l = r.learn(l)
		ours := err == nil && v.made(l)
		if ours {
			err = deleteLink(r.ns, r.conn, &r.batch, l)
		}
		if i, ok := v.(IPIP); ok && (err == nil || absent(err)) {
			err = errors.Join(err, i.undo(r.ns))
		}
		if err != nil && !absent(err) {
			r.failed(t, e, err, now)
			continue
		}
		lost := e.lost
		t.done(e)
		if !ours {
			continue
		}
		r.links.drop(l.index)
		r.forget(v.name(), now)
		if err == nil && (!lost || r.news(v, nil, now)) {
			r.log.Info("removed", "link", v.name())
		}
	}
}

// deleteLink deletes a link of a namespace. One of wireguard's loses its peers before, all at once: the kernel waits for RCU for
// each, 13 ms, where they go with the link, because it holds no lock then that would have it hurry (wg_peer_remove_all in
// drivers/net/wireguard/peer.c, synchronize_net).
func deleteLink(ns netns.NsHandle, c *rtnl.Conn, b *rtnl.Batch, l link) error {
	if i, ok := l.info.(wgInfo); ok && !i.user {
		setDevice(ns, l.name, wgtypes.Config{ReplacePeers: true}) // if not, it takes longer
	}
	b.Reset()
	encodeDeleteLink(b, l.index)
	failed, err := c.Exec(b, nil)
	if err != nil {
		return err
	}
	return failed[0]
}
