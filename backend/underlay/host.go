package underlay

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// host is what of a network namespace bears on the choice.
type host struct {
	links    []hostLink
	defaults map[int][]int // by address family: indexes of the links with a default route, the preferred one first
	reach    reach
	around   Around
}

type hostLink struct {
	name, mac    string
	index, mtu   int
	up, loopback bool
	addrs        []hostAddr
	sources      []netip.Addr // what the kernel sends from, one for each family; for links with a default route
}

type hostAddr struct {
	ip          netip.Addr
	bits, flags int // of the prefix; IFA_F_*
}

// reach is the kernel's answer to how packets get to Selector.CanReach.
type reach struct {
	link int
	src  netip.Addr
	err  error
}

// otherLinks are the beginnings of names of links that are ours or containers'. They may have addresses, and even a
// default route, but carry an overlay only if --iface names one of them.
var otherLinks = []string{"overlay", "flannel", "cni", "docker", "veth", "oveth"}

// hostly tells whether a link may be chosen without being named.
func (l hostLink) hostly() bool {
	return !l.loopback && !slices.ContainsFunc(otherLinks, func(p string) bool { return strings.HasPrefix(l.name, p) })
}

// usable tells whether ip is an address of the link, which is up, and can be an end of tunnels.
func (l hostLink) usable(ip netip.Addr) bool {
	return l.up && slices.ContainsFunc(l.addrs, func(a hostAddr) bool { return a.ip == ip && a.unfit() == "" })
}

func (l hostLink) has(ip netip.Addr) bool {
	return slices.ContainsFunc(l.addrs, func(a hostAddr) bool { return a.ip == ip })
}

// readHost reads what s chooses from, and what is around; of the routes no more than that takes.
func readHost(ns netns.NsHandle, s Selector) (host, error) {
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return host{}, fmt.Errorf("netlink: %w", err)
	}
	defer handle.Close()
	h := host{defaults: map[int][]int{}}
	if h.links, h.around.Connected, err = readLinks(handle); err != nil {
		return host{}, err
	}
	if s.CanReach.IsValid() {
		h.reach = readReach(handle, s.CanReach, 0)
	}
	for _, f := range s.families() {
		links, gateways, err := readDefaults(ns, uint8(f.af))
		if err != nil {
			return host{}, err
		}
		h.defaults[f.af] = links
		for i, l := range h.links {
			if slices.Contains(links, l.index) {
				h.links[i].sources = append(l.sources, readReach(handle, f.anywhere, l.index).src)
			}
		}
		h.around.Gateways = append(h.around.Gateways, gateways...)
	}
	return h, nil
}

func readLinks(handle *netlink.Handle) (links []hostLink, around []Connected, err error) {
	var list []netlink.Link
	var addrs []netlink.Addr
	err = rtnl.Consistent(func() (err error) { list, err = handle.LinkList(); return err })
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	err = rtnl.Consistent(func() (err error) { addrs, err = handle.AddrList(nil, unix.AF_UNSPEC); return err })
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	wired := wired(list)
	for _, link := range list {
		a := link.Attrs()
		l := hostLink{
			name: a.Name, mac: a.HardwareAddr.String(), index: a.Index, mtu: a.MTU,
			up: a.Flags&net.FlagUp != 0, loopback: a.Flags&net.FlagLoopback != 0,
		}
		for _, addr := range addrs {
			ip, ok := netip.AddrFromSlice(addr.IP)
			if !ok || addr.LinkIndex != a.Index {
				continue
			}
			bits, _ := addr.Mask.Size()
			l.addrs = append(l.addrs, hostAddr{ip.Unmap(), bits, addr.Flags})
			for _, p := range connected(addr) {
				if !l.loopback {
					around = append(around, Connected{p, a.Name, !wired[a.Index]})
				}
			}
		}
		links = append(links, l)
	}
	slices.SortStableFunc(around, func(a, b Connected) int { return a.Prefix.Compare(b.Prefix) })
	return links, around, nil
}

// readReach asks how packets get to ip; by the link of an index, if that is not 0.
func readReach(handle *netlink.Handle, ip netip.Addr, by int) reach {
	routes, err := handle.RouteGetWithOptions(ip.AsSlice(), &netlink.RouteGetOptions{OifIndex: by})
	if err != nil {
		return reach{err: err}
	}
	src, _ := netip.AddrFromSlice(routes[0].Src)
	return reach{link: routes[0].LinkIndex, src: src.Unmap()}
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
