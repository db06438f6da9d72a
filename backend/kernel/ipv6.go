package kernel

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/sysctl"
)

// prepare sets the parameters of a link of ours: it has IPv6 where it is to carry it, also on a host that has it off for new
// links, and hears nobody who is no peer.
func (r *Reconciler) prepare(v Link) error {
	inner6 := v.inner6()
	if w, ok := v.(WireGuard); ok {
		inner6 = r.has6(w.Name)
	}
	err := sysctl.Put(r.ns, sysctl.Overlay(v.name(), inner6)...)
	// Where they cannot be written, others have seen to them, or the addresses will say so.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

// has6 tells whether a link is to have an address of IPv6.
func (r *Reconciler) has6(name string) bool {
	for _, e := range r.claims.trackers[KindAddress].entries {
		if a, ok := e.want.(Address); ok && a.Link == name && a.Prefix.Addr().Is6() {
			return true
		}
	}
	return false
}
