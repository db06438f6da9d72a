package pending

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// ErrNoBridgeNetfilter is the error of a kernel that does not show bridges' traffic to nftables.
var ErrNoBridgeNetfilter = errors.New("traffic between containers of one bridge passes no policy: the kernel's module br_netfilter is not loaded (modprobe br_netfilter)")

// Bridge has the traffic of the bridge with an index seen by nftables, or no more. The error is ErrNoBridgeNetfilter if the
// kernel cannot.
func Bridge(index int, on bool) error { return BridgeIn(netns.None(), index, on) }

// BridgeIn is Bridge in a namespace.
func BridgeIn(ns netns.NsHandle, index int, on bool) error {
	if on { // without the module the kernel takes the setting, and does nothing
		err := rtnl.InNetns(ns, func() error { _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); return err })
		if errors.Is(err, os.ErrNotExist) {
			return ErrNoBridgeNetfilter
		}
	}
	c, err := rtnl.Dial(ns, rtnl.AnswersSize)
	if err != nil {
		return fmt.Errorf("bridge %d: %w", index, err)
	}
	defer c.Close()
	var value uint8
	if on {
		value = 1
	}
	var b rtnl.Batch
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{Index: int32(index)})
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.AttrString(unix.IFLA_INFO_KIND, "bridge")
		b.Nest(unix.IFLA_INFO_DATA, func() {
			b.AttrU8(unix.IFLA_BR_NF_CALL_IPTABLES, value)
			b.AttrU8(unix.IFLA_BR_NF_CALL_IP6TABLES, value)
		})
	})
	b.End()
	err = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	failed, execErr := c.Exec(&b, nil)
	if err = cmp.Or(err, execErr, failed[0]); err != nil {
		return fmt.Errorf("have traffic of the bridge with index %d judged (%t): %w", index, on, err)
	}
	return nil
}
