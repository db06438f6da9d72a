package kernel

import (
	"errors"
	"io/fs"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/sysctl"
)

// prepare sets the parameters of a link of ours: it has IPv6 where it is to carry it, also on a host that has it off for new
// links, and hears nobody who is no peer.
func prepare(ns netns.NsHandle, v Link) error {
	err := sysctl.Put(ns, sysctl.Overlay(v.name(), v.inner6())...)
	// Where they cannot be written, others have seen to them, or the addresses will say so.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}
