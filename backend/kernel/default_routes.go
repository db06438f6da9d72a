package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hop is one way out of a default route.
type hop struct{ link, metric int }

// readDefaults are the links of the default routes in the main table, lowest metric first. Others there may be hundreds
// of thousands of: the kernel makes its answer while it is read, and where the default routes come first, the rest is
// never made. What changes meanwhile is no reason to begin again: whoever cares hears of the change.
func readDefaults(ns netns.NsHandle, af uint8) ([]int, error) {
	c, err := dial(ns, answersSize)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer c.close() // ends the answer
	var b batch
	b.begin(unix.RTM_GETROUTE, 0, unix.RtMsg{Family: af, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST})
	b.end()
	b.seal(1, unix.NLM_F_DUMP)
	if err := c.send(b.buf); err != nil {
		return nil, err
	}
	var hops []hop
	for done := false; !done; {
		piece, err := c.receive()
		if err != nil {
			return nil, err
		}
		var more []hop
		more, done, err = defaultsIn(piece)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		hops = append(hops, more...)
	}
	slices.SortStableFunc(hops, func(a, b hop) int { return a.metric - b.metric })
	var links []int
	for _, h := range hops {
		if !slices.Contains(links, h.link) {
			links = append(links, h.link)
		}
	}
	return links, nil
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
func hopsOf(attrs []byte) (hops []hop) {
	var links []int
	metric := 0
	for typ, data := range attributes(attrs) {
		switch {
		case typ == unix.RTA_OIF && len(data) == 4:
			links = append(links, int(binary.NativeEndian.Uint32(data)))
		case typ == unix.RTA_PRIORITY && len(data) == 4:
			metric = int(binary.NativeEndian.Uint32(data))
		case typ == unix.RTA_MULTIPATH:
			links = append(links, nexthopLinks(data)...)
		}
	}
	for _, link := range links {
		hops = append(hops, hop{link, metric})
	}
	return hops
}

// nexthopLinks are the links of a multipath route (struct rtnexthop in linux/rtnetlink.h).
func nexthopLinks(data []byte) (links []int) {
	for len(data) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(data))
		links = append(links, int(binary.NativeEndian.Uint32(data[4:])))
		if size < unix.SizeofRtNexthop || align(size) > len(data) {
			break
		}
		data = data[align(size):]
	}
	return links
}
