package pending

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// ErrNoBridgeNetfilter is the error of a kernel that does not show bridges' traffic to nftables.
var ErrNoBridgeNetfilter = errors.New("traffic between containers of one bridge passes no policy: the kernel's module br_netfilter is not loaded (modprobe br_netfilter)")

// Bridge has the traffic of the bridge with an index seen by nftables, with that of ports that join it. A kernel that cannot do
// so is the daemon's to tell of: without it no container of the host would start.
func Bridge(index int, joining ...int) error {
	err := BridgeIn(netns.None(), index, true)
	if !errors.Is(err, ErrNoBridgeNetfilter) {
		return err
	}
	routed, err := PortsOf(netns.None(), map[int]bool{index: true}, joining...)
	if err != nil {
		return err
	}
	c, err := dial(10 * time.Second)
	if err == nil {
		defer c.Close()
		var b rtnl.Batch
		b.Transaction()
		Route(&b, routed)
		err = c.Commit(&b)
	}
	if isNowhere(err) || errors.Is(err, unix.EBUSY) { // a port has another MAC now: what comes by ours is dropped till the daemon looks
		return nil
	}
	if err != nil {
		return fmt.Errorf("route what ports of the bridge with index %d send each other: %w", index, err)
	}
	return nil
}

// BridgeIn has the traffic of a bridge in a namespace seen by nftables, or no more. The error is ErrNoBridgeNetfilter if the
// kernel cannot.
func BridgeIn(ns netns.NsHandle, index int, on bool) error {
	if !Sees(ns) { // it takes the setting, and does nothing
		return ErrNoBridgeNetfilter
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

// Sees says whether the kernel of a namespace can show bridges' traffic to nftables: br_netfilter, which nothing but modprobe
// loads, makes these sysctls.
func Sees(ns netns.NsHandle) bool {
	err := rtnl.InNetns(ns, func() error { _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); return err })
	return !errors.Is(err, os.ErrNotExist)
}

// Routes is the table by which a host whose kernel has no br_netfilter routes what ports of a bridge send each other. Its sets
// are of the indices of ports.
var Routes = rtnl.Table{Family: unix.NFPROTO_BRIDGE, Name: PolicyTable}

// The sets of Routes.
const (
	RoutedPorts = "ports"
	// RoutedUp is a map, to the port's own MAC: at it the bridge takes a frame for the host's, whatever MAC itself has.
	RoutedUp = "up"
)

// Route adds to a transaction that Routes has ports, by their index, with their MACs.
func Route(b *rtnl.Batch, macs map[uint32]string) {
	up, all := map[rtnl.Element]bool{}, map[rtnl.Element]bool{}
	for index, mac := range macs {
		key := string(rtnl.NativeU32(index))
		up[rtnl.Element{Key: key, Data: mac}], all[rtnl.Element{Key: key}] = true, true
	}
	b.Elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, Routes, RoutedUp, maps.Keys(up))
	b.Elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, Routes, RoutedPorts, maps.Keys(all))
}

// PortsOf are the MACs of the ports of bridges that are true, and of links that are to be ports, by their index.
func PortsOf(ns netns.NsHandle, bridges map[int]bool, joining ...int) (macs map[uint32]string, err error) {
	macs = map[uint32]string{}
	c, err := rtnl.Dial(ns, rtnl.AnswersSize)
	if err == nil {
		defer c.Close()
		joins := map[int]bool{}
		for _, index := range joining {
			joins[index] = true
		}
		var b rtnl.Batch
		b.Begin(unix.RTM_GETLINK, 0, unix.IfInfomsg{})
		b.AttrU32(unix.IFLA_EXT_MASK, rtnl.SkipStats)
		b.End()
		err = cmp.Or(c.SetReadDeadline(time.Now().Add(10*time.Second)), c.Dump(&b, func(body []byte) {
			var link unix.IfInfomsg
			var master int
			var mac string
			for typ, data := range rtnl.Attributes(rtnl.Header(body, &link)) {
				switch {
				case typ == unix.IFLA_MASTER && len(data) == 4:
					master = int(binary.NativeEndian.Uint32(data))
				case typ == unix.IFLA_ADDRESS:
					mac = string(data)
				}
			}
			if len(mac) == 6 && (bridges[master] || joins[int(link.Index)]) {
				macs[uint32(link.Index)] = mac
			}
		}))
	}
	if err != nil {
		return nil, fmt.Errorf("ports of bridges: %w", err)
	}
	return macs, nil
}
