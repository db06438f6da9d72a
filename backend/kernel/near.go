package kernel

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Near tells for each address whether packets to it go to a link directly, as Reconciler.Near does, without a
// Reconciler. A zero namespace is the current one.
func Near(ns netns.NsHandle, addrs []netip.Addr) ([]bool, error) {
	c, err := rtnl.Dial(Config{Namespace: ns}.withDefaults().Namespace, rtnl.AnswersSize)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	defer c.Close()
	return near(c, addrs)
}

// near looks the routes to the addresses up. No route at all is not near.
func near(c *rtnl.Conn, addrs []netip.Addr) ([]bool, error) {
	var b rtnl.Batch
	isNear := make([]bool, 0, len(addrs))
	for some := range slices.Chunk(addrs, rtnl.BatchSize) {
		b.Reset()
		for _, a := range some {
			h := unix.RtMsg{Family: rtnl.FamilyOf(a), Dst_len: uint8(a.BitLen()), Flags: unix.RTM_F_FIB_MATCH}
			b.Begin(unix.RTM_GETROUTE, 0, h)
			b.AttrAddr(unix.RTA_DST, a)
			b.End()
		}
		first := len(isNear)
		isNear = append(isNear, make([]bool, len(some))...)
		if _, err := c.Exec(&b, func(i int, body []byte) { isNear[first+i] = direct(body) }); err != nil {
			return nil, err
		}
	}
	return isNear, nil
}

// direct tells whether a route has one nexthop and no gateway.
func direct(body []byte) bool {
	var h unix.RtMsg
	attrs := rtnl.Header(body, &h)
	for typ := range rtnl.Attributes(attrs) {
		switch typ {
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH:
			return false
		}
	}
	return h.Type == unix.RTN_UNICAST
}
