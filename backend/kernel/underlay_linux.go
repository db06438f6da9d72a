package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// host is what of a network namespace bears on the choice.
type host struct {
	links    []hostLink
	defaults map[int][]int // by address family: indexes of the links with a default route, the preferred one first
	reach    reach
}

type hostLink struct {
	name         string
	index, mtu   int
	up, loopback bool
	addrs        []hostAddr
}

type hostAddr struct {
	ip    netip.Addr
	flags int // IFA_F_*
}

// reach is the kernel's answer to how packets get to Selector.CanReach.
type reach struct {
	link int
	src  netip.Addr
	err  error
}

// otherLinks are the beginnings of names of links that are ours or containers'. They may have addresses, and even a
// default route, but carry an overlay only if --iface names one of them.
var otherLinks = []string{"overlay", "flannel", "cni", "docker", "veth"}

// hostly tells whether a link may be chosen without being named.
func (l hostLink) hostly() bool {
	return !l.loopback && !slices.ContainsFunc(otherLinks, func(p string) bool { return strings.HasPrefix(l.name, p) })
}

func (l hostLink) has(ip netip.Addr) bool {
	return slices.ContainsFunc(l.addrs, func(a hostAddr) bool { return a.ip == ip })
}

// readHost reads what FindUnderlay chooses from, and asks for the way to canReach if that is given.
func readHost(ns netns.NsHandle, canReach netip.Addr) (host, error) {
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return host{}, fmt.Errorf("netlink: %w", err)
	}
	defer handle.Close()
	h := host{defaults: map[int][]int{}}
	if h.links, err = readLinks(handle); err != nil {
		return host{}, err
	}
	c, err := dial(ns, answersSize)
	if err != nil {
		return host{}, fmt.Errorf("netlink: %w", err)
	}
	defer c.close()
	for _, af := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if h.defaults[int(af)], err = readDefaults(c, af); err != nil {
			return host{}, err
		}
	}
	if canReach.IsValid() {
		h.reach = readReach(handle, canReach)
	}
	return h, nil
}

func readLinks(handle *netlink.Handle) ([]hostLink, error) {
	list, err := consistent(handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := consistent(func() ([]netlink.Addr, error) { return handle.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var links []hostLink
	for _, link := range list {
		a := link.Attrs()
		l := hostLink{
			name: a.Name, index: a.Index, mtu: a.MTU,
			up: a.Flags&net.FlagUp != 0, loopback: a.Flags&net.FlagLoopback != 0,
		}
		for _, addr := range addrs {
			if ip, ok := netip.AddrFromSlice(addr.IP); ok && addr.LinkIndex == a.Index {
				l.addrs = append(l.addrs, hostAddr{ip: ip.Unmap(), flags: addr.Flags})
			}
		}
		links = append(links, l)
	}
	return links, nil
}

// readDefaults are the links of the default routes in the main table, lowest metric first. It looks at no more than
// the header of any other route: there may be hundreds of thousands.
func readDefaults(c *conn, af uint8) ([]int, error) {
	type hop struct{ link, metric int }
	var hops []hop
	var b batch
	b.begin(unix.RTM_GETROUTE, 0, unix.RtMsg{Family: af})
	b.end()
	err := c.dump(&b, func(body []byte) {
		var h unix.RtMsg
		attrs := header(body, &h)
		if h.Dst_len != 0 || h.Type != unix.RTN_UNICAST || h.Table != unix.RT_TABLE_MAIN {
			return
		}
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
	})
	// A kernel without IPv6 has no routes of it.
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	slices.SortStableFunc(hops, func(a, b hop) int { return a.metric - b.metric })
	var links []int
	for _, h := range hops {
		if !slices.Contains(links, h.link) { // an interrupted dump told of it twice
			links = append(links, h.link)
		}
	}
	return links, nil
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

func readReach(handle *netlink.Handle, ip netip.Addr) reach {
	routes, err := handle.RouteGet(ip.AsSlice())
	if err != nil {
		return reach{err: err}
	}
	src, _ := netip.AddrFromSlice(routes[0].Src)
	return reach{link: routes[0].LinkIndex, src: src.Unmap()}
}

// consistent calls list again where the kernel changed meanwhile, so that the answer is of one moment.
func consistent[T any](list func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// unfit says why an address cannot be an end of tunnels, "" if it can.
func (a hostAddr) unfit() string {
	switch {
	case a.ip.IsLoopback():
		return "loopback"
	case a.ip.Is6() && a.ip.IsLinkLocalUnicast():
		return "link-local"
	case a.flags&unix.IFA_F_DADFAILED != 0:
		return "duplicate"
	case a.flags&unix.IFA_F_TENTATIVE != 0:
		return "tentative"
	case a.flags&unix.IFA_F_DEPRECATED != 0:
		return "deprecated"
	}
	return ""
}

// addresses lists the link's addresses for an error.
func (l hostLink) addresses() string {
	var list []string
	for _, a := range l.addrs {
		list = append(list, strings.TrimSpace(a.ip.String()+" "+a.unfit()))
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// String lists the links that may be chosen, for an error.
func (h host) String() string {
	var list []string
	for _, l := range h.links {
		if !l.hostly() {
			continue
		}
		state := l.addresses()
		if !l.up {
			state = "down"
		}
		list = append(list, fmt.Sprintf("%s (%s)", l.name, state))
	}
	if len(list) == 0 {
		return "none but loopback and container links"
	}
	return strings.Join(list, ", ")
}
