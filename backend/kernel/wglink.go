package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// put implements handmade. Sessions go on where the key stays.
func (w WireGuard) put(r *Reconciler) (changed bool, err error) {
	have, err := w.there(r)
	if err != nil {
		return false, err
	}
	if w.is(have, 0) {
		r.links.set(have)
		return false, nil
	}
	before := have.info.(wgInfo)
	if err := w.configure(r, before); err != nil {
		return false, err
	}
	if err := r.prepare(w); err != nil { // while it is down it takes no address of its own
		return false, err
	}
	err = r.execAll(func(b *rtnl.Batch) {
		if before.user && have.up && before.port == 0 { // it could not have its port, and takes that only when it comes up
			encodeLinkDown(b, have.index)
		}
		w.change(b, have, 0)
	})
	if err != nil {
		return false, w.explain(err)
	}
	if before.known && before.secret != (Secret{}) && before.secret.clamped() != w.Private.clamped() {
		r.greetKept(w.Name)
	}
	if have, err = r.readLink(w.Name); err != nil {
		return false, err
	}
	r.links.set(have)
	if !w.is(have, 0) {
		return true, fmt.Errorf("the kernel made it otherwise: MTU %d, port %d", have.mtu, have.info.(wgInfo).port)
	}
	return true, nil
}

// there is the link of the name, made if there is none: down, and without a key.
func (w WireGuard) there(r *Reconciler) (link, error) {
	have, err := r.readLink(w.Name)
	if !errors.Is(err, unix.ENODEV) {
		if err == nil && !w.like(have) {
			err = fmt.Errorf("a link %s exists that is not overlayd's: remove or rename it", w.Name)
		}
		return have, err
	}
	switch err := r.execAll(func(b *rtnl.Batch) { w.create(b, 0) }); {
	case errors.Is(err, unix.EOPNOTSUPP) && r.userSpace != nil: // the kernel has no such kind of link
		if err := r.userSpace.WireGuard(w.Name, w.MTU); err != nil {
			return link{}, fmt.Errorf("the kernel has no wireguard, and there is no link by a process: %w", err)
		}
	case errors.Is(err, unix.EOPNOTSUPP):
		return link{}, fmt.Errorf("the kernel has no wireguard (modprobe wireguard): %w", err)
	case err != nil:
		return link{}, err
	}
	return r.readLink(w.Name)
}

// configure sets what differs.
func (w WireGuard) configure(r *Reconciler, have wgInfo) error {
	var cfg wgtypes.Config
	if have.secret.clamped() != w.Private.clamped() {
		cfg.PrivateKey = new(wgtypes.Key(w.Private))
	}
	if have.port != w.Port {
		cfg.ListenPort = new(int(w.Port))
	}
	if have.mark != w.Mark {
		cfg.FirewallMark = new(int(w.Mark))
	}
	if cfg.PrivateKey == nil && cfg.ListenPort == nil && cfg.FirewallMark == nil {
		return nil
	}
	if have.user && cfg.ListenPort != nil { // which a process finds out later, and tells nobody
		if err := portFree(r.ns, w.Port); err != nil {
			return w.explain(err)
		}
	}
	return w.explain(setDevice(r.ns, w.Name, cfg))
}

// portFree tries to take a port; unix.EADDRINUSE if another has it.
func portFree(ns netns.NsHandle, port uint16) error {
	return rtnl.InNetns(ns, func() error {
		for _, network := range []string{"udp4", "udp6"} {
			c, err := net.ListenUDP(network, &net.UDPAddr{Port: int(port)})
			if err == nil {
				c.Close()
			} else if errors.Is(err, unix.EADDRINUSE) {
				return unix.EADDRINUSE
			}
		}
		return nil
	})
}

func (w WireGuard) explain(err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("UDP port %d is taken (ss -lnup sport = %[1]d says by whom): %w", w.Port, err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("link %s is none of wireguard's, or its process has ended: %w", w.Name, err)
	}
	return err
}

// learn is l with what wireguard says of it, where that concerns us: as known, if the link is the same, or else as it is.
func (r *Reconciler) learn(l link) link {
	i, ok := l.info.(wgInfo)
	if !ok {
		return l
	}
	if before, ok := r.links.byName[l.name].info.(wgInfo); ok && before.known && r.links.byName[l.name].index == l.index {
		l.info = before
		return l
	}
	if e := r.claims.trackers[KindLink].entries[linkKey(l.name)]; e != nil || isNamed(l.name, WireGuardName, WireGuardName6) {
		l.info = i.ask(r.ns, l.name)
	}
	return l
}

// ask is i with what wireguard says of the link; as it was, if that says nothing.
func (i wgInfo) ask(ns netns.NsHandle, name string) wgInfo {
	if d, err := readDevice(ns, name); err == nil {
		return i.learned(d)
	}
	return i
}

// readLink reads a link as it is; unix.ENODEV if there is none.
func (r *Reconciler) readLink(name string) (link, error) {
	l, err := linkByName(r.conn, &r.batch, name)
	if i, ok := l.info.(wgInfo); ok && err == nil {
		l.info = i.ask(r.ns, name)
	}
	return l, err
}

// execAll sends what f adds to a batch, and returns what failed.
func (r *Reconciler) execAll(f func(*rtnl.Batch)) error {
	r.batch.Reset()
	f(&r.batch)
	failed, err := r.conn.Exec(&r.batch, nil)
	for _, e := range failed {
		err = errors.Join(err, e)
	}
	return err
}
