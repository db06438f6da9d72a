package kernel

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Near tells for each address whether packets to it go to a link directly, as Reconciler.Near does, without a
// Reconciler. A zero namespace is the current one.
func Near(ns netns.NsHandle, addrs []netip.Addr) ([]bool, error) {
	c, err := dial(Config{Namespace: ns}.withDefaults().Namespace, answersSize)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	defer c.close()
	return c.near(addrs)
}

// near looks the routes to the addresses up. No route at all is not near.
func (c *conn) near(addrs []netip.Addr) ([]bool, error) {
	var b batch
	near := make([]bool, 0, len(addrs))
	for some := range slices.Chunk(addrs, batchSize) {
		b.reset()
		for _, a := range some {
			h := unix.RtMsg{Family: familyOf(a), Dst_len: uint8(a.BitLen()), Flags: unix.RTM_F_FIB_MATCH}
			b.begin(unix.RTM_GETROUTE, 0, h)
			b.attrAddr(unix.RTA_DST, a)
			b.end()
		}
		first := len(near)
		near = append(near, make([]bool, len(some))...)
		if _, err := c.exec(&b, func(i int, body []byte) { near[first+i] = direct(body) }); err != nil {
			return nil, err
		}
	}
	return near, nil
}

// direct tells whether a route has one nexthop and no gateway.
func direct(body []byte) bool {
	var h unix.RtMsg
	attrs := header(body, &h)
	for typ := range attributes(attrs) {
		switch typ {
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH:
			return false
		}
	}
	return h.Type == unix.RTN_UNICAST
}
