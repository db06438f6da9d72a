package underlay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// OnLink tells for each address the index of the link that packets to it go to directly: by exactly one nexthop, with no
// gateway. It is 0 where there is none.
func OnLink(ns netns.NsHandle, addrs []netip.Addr) ([]int, error) {
	c, err := rtnl.Dial(ns, rtnl.AnswersSize)
	if err != nil {
		return nil, fmt.Errorf("which addresses are on a link: %w", err)
	}
	defer c.Close()
	var b rtnl.Batch
	links := make([]int, len(addrs))
	rest := links
	for some := range slices.Chunk(addrs, rtnl.BatchSize) {
		b.Reset()
		for _, a := range some {
			h := unix.RtMsg{Family: rtnl.FamilyOf(a), Dst_len: uint8(a.BitLen()), Flags: unix.RTM_F_FIB_MATCH}
			b.Begin(unix.RTM_GETROUTE, 0, h)
			b.AttrAddr(unix.RTA_DST, a)
			b.End()
		}
		if _, err := c.Exec(&b, func(i int, body []byte) { rest[i] = directly(body) }); err != nil {
			return nil, fmt.Errorf("which addresses are on a link: %w", err)
		}
		rest = rest[len(some):]
	}
	return links, nil
}

// directly is the link of a route that has one nexthop and no gateway, else 0.
func directly(body []byte) (link int) {
	var h unix.RtMsg
	for typ, data := range rtnl.Attributes(rtnl.Header(body, &h)) {
		switch typ {
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH:
			return 0
		case unix.RTA_OIF:
			link = int(binary.NativeEndian.Uint32(data))
		}
	}
	if h.Type != unix.RTN_UNICAST {
		return 0
	}
	return link
}
