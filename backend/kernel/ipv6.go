package kernel

import (
	"errors"
	"io/fs"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/sysctl"
)

// prepareIPv6 lets a link of ours have IPv6 where it is to carry it, also on a host that has it off for new links, and
// has it hear no router: peers are none.
func prepareIPv6(ns netns.NsHandle, v Link) error {
	dir := "net/ipv6/conf/" + v.name() + "/"
	params := []sysctl.Param{{Name: dir + "accept_ra", Value: "0"}}
	if v.inner6() {
		params = append(params, sysctl.Param{Name: dir + "disable_ipv6", Value: "0"})
	}
	err := sysctl.Put(ns, params...)
	// Where they cannot be written, others have seen to them, or the addresses will say so.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}
