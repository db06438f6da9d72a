package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// hop is one way out of a default route.
type hop struct {
	link, metric int
	gateway      netip.Addr // invalid: none
}

// readDefaults are the links of the default routes in the main table, lowest metric first, and their gateways. Others
// there may be hundreds of thousands of: the kernel makes its answer while it is read, and where the default routes come
// first, the rest is never made. What changes meanwhile is no reason to begin again: whoever cares hears of the change.
func readDefaults(ns netns.NsHandle, af uint8) (links []int, gateways []netip.Addr, err error) {
	c, err := rtnl.Dial(ns, rtnl.AnswersSize)
	if err != nil {
		return nil, nil, fmt.Errorf("netlink: %w", err)
	}
	defer c.Close() // ends the answer
	var b rtnl.Batch
	b.Begin(unix.RTM_GETROUTE, 0, unix.RtMsg{Family: af, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST})
	b.End()
	var hops []hop
	done := false
	err = c.DumpOnce(&b, func() bool { return done }, func(body []byte) {
		more, last := defaultsIn(body)
		hops, done = append(hops, more...), done || last
	})
	switch {
	case errors.Is(err, rtnl.ErrStopped), errors.Is(err, netlink.ErrDumpInterrupted):
	// A namespace without any route has no table, and a kernel without IPv6 none of it.
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
	case err != nil:
		return nil, nil, fmt.Errorf("list routes: %w", err)
	}
	slices.SortStableFunc(hops, func(a, b hop) int { return a.metric - b.metric })
	for _, h := range hops {
		if !slices.Contains(links, h.link) {
			links = append(links, h.link)
		}
		if h.gateway.IsGlobalUnicast() {
			gateways = append(gateways, h.gateway)
		}
	}
	return links, gateways, nil
}

// defaultsIn reads a route, and tells whether no more default routes will come. In IPv4's answer, routes come by their
// network, of 0.0.0.0 first (fib_table_dump in net/ipv4/fib_trie.c); in IPv6's the default routes come last
// (fib6_walk_continue in net/ipv6/ip6_fib.c).
func defaultsIn(body []byte) (hops []hop, done bool) {
	switch {
	case len(body) < unix.SizeofRtMsg:
		return nil, false
	case body[1] == 0: // rtm_dst_len
		return hopsOf(body[unix.SizeofRtMsg:]), false
	}
	return nil, body[0] == unix.AF_INET && beyondZero(body[unix.SizeofRtMsg:])
}

// beyondZero tells whether a route is to another network than 0.0.0.0, which has routes of any length.
func beyondZero(attrs []byte) bool {
	for typ, data := range rtnl.Attributes(attrs) {
		if typ == unix.RTA_DST {
			return !rtnl.Addr(data).IsUnspecified()
		}
	}
	return false
}

// hopsOf are the ways out of a route.
func hopsOf(attrs []byte) []hop {
	var one hop
	hops := []hop{}
	metric := 0
	for typ, data := range rtnl.Attributes(attrs) {
		switch {
		case typ == unix.RTA_OIF && len(data) == 4:
			one.link = int(binary.NativeEndian.Uint32(data))
		case typ == unix.RTA_PRIORITY && len(data) == 4:
			metric = int(binary.NativeEndian.Uint32(data))
		case typ == unix.RTA_MULTIPATH:
			hops = nexthops(data)
		default:
			one.via(typ, data)
		}
	}
	if one.link != 0 {
		hops = append(hops, one)
	}
	for i := range hops {
		hops[i].metric = metric
	}
	return hops
}

// via takes in an attribute that names the gateway.
func (h *hop) via(typ uint16, data []byte) {
	switch {
	case typ == unix.RTA_GATEWAY:
		h.gateway = rtnl.Addr(data)
	case typ == unix.RTA_VIA && len(data) > 2: // struct rtvia: of another family than the route
		h.gateway = rtnl.Addr(data[2:])
	}
}

// nexthops are those of a multipath route (struct rtnexthop in linux/rtnetlink.h).
func nexthops(data []byte) (hops []hop) {
	for len(data) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(data))
		h := hop{link: int(binary.NativeEndian.Uint32(data[4:]))}
		if size >= unix.SizeofRtNexthop && size <= len(data) {
			for typ, value := range rtnl.Attributes(data[unix.SizeofRtNexthop:size]) {
				h.via(typ, value)
			}
		}
		hops = append(hops, h)
		if size < unix.SizeofRtNexthop || rtnl.Align(size) > len(data) {
			break
		}
		data = data[rtnl.Align(size):]
	}
	return hops
}
