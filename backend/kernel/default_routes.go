package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
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
	c, err := dial(ns, answersSize)
	if err != nil {
		return nil, nil, fmt.Errorf("netlink: %w", err)
	}
	defer c.close() // ends the answer
	var b batch
	b.begin(unix.RTM_GETROUTE, 0, unix.RtMsg{Family: af, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST})
	b.end()
	b.seal(1, unix.NLM_F_DUMP)
	if err := c.send(b.buf); err != nil {
		return nil, nil, err
	}
	var hops []hop
	for done := false; !done; {
		piece, err := c.receive()
		if err != nil {
			return nil, nil, err
		}
		var more []hop
		more, done, err = defaultsIn(piece)
		if err != nil {
			return nil, nil, fmt.Errorf("list routes: %w", err)
		}
		hops = append(hops, more...)
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

// defaultsIn reads a piece of the answer, and tells whether no more default routes will come. In IPv4's, routes come by
// their network, of 0.0.0.0 first (fib_table_dump in net/ipv4/fib_trie.c); in IPv6's the default routes come last
// (fib6_walk_continue in net/ipv6/ip6_fib.c).
func defaultsIn(piece []byte) (hops []hop, done bool, err error) {
	for h, body := range messages(piece) {
		switch {
		case h.Type != unix.RTM_NEWROUTE:
			err := answer(h, body)
			// A namespace without any route has no table, and a kernel without IPv6 none of it.
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
				err = nil
			}
			return hops, true, err
		case len(body) < unix.SizeofRtMsg:
		case body[1] == 0: // rtm_dst_len
			hops = append(hops, hopsOf(body[unix.SizeofRtMsg:])...)
		case body[0] == unix.AF_INET && beyondZero(body[unix.SizeofRtMsg:]):
			return hops, true, nil
		}
	}
	return hops, false, nil
}

// beyondZero tells whether a route is to another network than 0.0.0.0, which has routes of any length.
func beyondZero(attrs []byte) bool {
	for typ, data := range attributes(attrs) {
		if typ == unix.RTA_DST {
			return !addr(data).IsUnspecified()
		}
	}
	return false
}

// hopsOf are the ways out of a route.
func hopsOf(attrs []byte) []hop {
	var one hop
	hops := []hop{}
	metric := 0
	for typ, data := range attributes(attrs) {
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
		h.gateway = addr(data)
	case typ == unix.RTA_VIA && len(data) > 2: // struct rtvia: of another family than the route
		h.gateway = addr(data[2:])
	}
}

// nexthops are those of a multipath route (struct rtnexthop in linux/rtnetlink.h).
func nexthops(data []byte) (hops []hop) {
	for len(data) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(data))
		h := hop{link: int(binary.NativeEndian.Uint32(data[4:]))}
		if size >= unix.SizeofRtNexthop && size <= len(data) {
			for typ, value := range attributes(data[unix.SizeofRtNexthop:size]) {
				h.via(typ, value)
			}
		}
		hops = append(hops, h)
		if size < unix.SizeofRtNexthop || align(size) > len(data) {
			break
		}
		data = data[align(size):]
	}
	return hops
}
