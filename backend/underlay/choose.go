// Package underlay chooses the link and the addresses by which a host meets its peers, as the kernel would, and reads what
// else is around the host.
package underlay

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Selector says which link carries the overlay. The first of these that is given decides: Ifaces and then Regexes,
// CanReach, a public IP that is an address of a link, else the default route.
type Selector struct {
	IPv4, IPv6 bool         // the families that the link must have an address of
	Ifaces     []string     // --iface: names or addresses of links; the first usable one is taken
	Regexes    []string     // --iface-regex: likewise, matched against names and addresses
	CanReach   netip.Addr   // --iface-can-reach: the link by which packets go there
	PublicIPs  []netip.Addr // --public-ip and --public-ipv6: where peers send to, if not to the link's address
	InUse      []netip.Addr // addresses that stay chosen while they are there and usable, but for what the others say
}

// Choice is the link that carries the overlay, and the host's addresses on it.
type Choice struct {
	Link, NIC  string // name and MAC of the link
	Unbound    bool   // the link is loopback, and the MTU that of the narrowest link with a default route
	Index, MTU int
	Addrs      []netip.Addr // an address of the link for each family asked for, IPv4 first
	PublicIPs  []netip.Addr // where peers send to, for each family asked for, IPv4 first
	Around     Around       // gateways are of the families asked for
	Uplinks    []string     // by which packets leave the host: Link, if it is not loopback, and those with a default route
}

// Find chooses the link in ns that carries the overlay. The error is one line that names the flag, the link
// and the family at fault, and what there is instead.
func Find(ns netns.NsHandle, s Selector) (Choice, error) {
	h, err := readHost(ns, s)
	if err != nil {
		return Choice{}, fmt.Errorf("find the underlay: %w", err)
	}
	u, err := h.choose(s)
	u.Around = h.around
	for _, l := range h.links {
		if l.index == u.Index && !u.Unbound || h.uplink(l) {
			u.Uplinks = append(u.Uplinks, l.name)
		}
	}
	slices.Sort(u.Uplinks)
	return u, err
}

// ipFamily is what differs between the two.
type ipFamily struct {
	name     string
	af       int
	is       func(netip.Addr) bool
	anywhere netip.Addr // the default routes are for, in all likelihood: of documentation (RFC 5737 and 9637)
}

func (s Selector) families() []ipFamily {
	var fs []ipFamily
	if s.IPv4 {
		fs = append(fs, ipFamily{"IPv4", unix.AF_INET, netip.Addr.Is4, netip.AddrFrom4([4]byte{203, 0, 113, 1})})
	}
	if s.IPv6 {
		fs = append(fs, ipFamily{"IPv6", unix.AF_INET6, netip.Addr.Is6, netip.AddrFrom16([16]byte{0x3f, 0xff, 0, 0, 15: 1})})
	}
	return fs
}

func (h host) choose(s Selector) (Choice, error) {
	if len(s.families()) == 0 {
		return Choice{}, errors.New("find the underlay: neither IPv4 nor IPv6 is asked for")
	}
	if len(s.Ifaces)+len(s.Regexes) > 0 {
		u, err := h.byFlag(s)
		if err == nil || !s.CanReach.IsValid() {
			return u, err
		}
	}
	if s.CanReach.IsValid() {
		return h.byReach(s)
	}
	for _, ip := range s.PublicIPs {
		i := slices.IndexFunc(h.links, func(l hostLink) bool { return l.hostly() && l.has(ip) })
		if i < 0 {
			continue
		}
		u, err := h.links[i].use(s)
		if err != nil {
			return Choice{}, fmt.Errorf("the public IP %s: %w", ip, err)
		}
		return u, nil
	}
	return h.byDefaultRoute(s)
}

// byFlag takes the first link that an --iface or --iface-regex is about and that can be used.
func (h host) byFlag(s Selector) (Choice, error) {
	var why []string
	for _, iface := range s.Ifaces {
		ip, _ := netip.ParseAddr(iface)
		i := slices.IndexFunc(h.links, func(l hostLink) bool { return l.name == iface || l.has(ip) && !ip.IsLoopback() })
		if i < 0 {
			why = append(why, fmt.Sprintf("--iface %s: no link has this name or address", iface))
			continue
		}
		l := h.links[i]
		unbound := l.loopback && ip.IsValid()
		if unbound {
			l = h.uplinks(l)
		}
		u, err := l.use(s, ip)
		if u.Unbound = unbound; err == nil {
			return u, nil
		}
		why = append(why, fmt.Sprintf("--iface %s: %v", iface, err))
	}
	for _, expr := range s.Regexes {
		re, err := regexp.Compile(expr)
		if err != nil {
			return Choice{}, fmt.Errorf("--iface-regex: %w", err)
		}
		found := false
		for _, l := range h.links {
			ips, ok := l.match(re)
			if !ok {
				continue
			}
			found = true
			u, err := l.use(s, ips...)
			if err == nil {
				return u, nil
			}
			why = append(why, fmt.Sprintf("--iface-regex %s: %v", expr, err))
		}
		if !found {
			why = append(why, fmt.Sprintf("--iface-regex %s: matches no link", expr))
		}
	}
	return Choice{}, fmt.Errorf("%s; there are %s", strings.Join(why, "; "), h)
}

// uplink tells whether a default route is by l, and l no container's link.
func (h host) uplink(l hostLink) bool {
	return l.hostly() && slices.Contains(slices.Concat(h.defaults[unix.AF_INET], h.defaults[unix.AF_INET6]), l.index)
}

// uplinks stands for the links with a default route, by which a host is reached whose addresses are those of l, loopback:
// one that tells its routes itself, say.
func (h host) uplinks(l hostLink) hostLink {
	l.up, l.loopback, l.mtu, l.mac = false, false, 0, ""
	for _, up := range h.links {
		if up.up && h.uplink(up) {
			l.mtu = min(up.mtu, cmp.Or(l.mtu, up.mtu))
			l.up, l.mac = true, cmp.Or(l.mac, up.mac)
		}
	}
	return l
}

// match tells whether the expression matches the link's name, or which of its addresses.
func (l hostLink) match(re *regexp.Regexp) (ips []netip.Addr, ok bool) {
	if !l.hostly() || re.MatchString(l.name) {
		return nil, l.hostly()
	}
	for _, a := range l.addrs {
		if re.MatchString(a.ip.String()) {
			ips = append(ips, a.ip)
		}
	}
	return ips, len(ips) > 0
}

func (h host) byReach(s Selector) (Choice, error) {
	flag := fmt.Sprintf("--iface-can-reach %s", s.CanReach)
	if h.reach.err != nil {
		return Choice{}, fmt.Errorf("%s: no route: %w; there are %s", flag, h.reach.err, h)
	}
	i := slices.IndexFunc(h.links, func(l hostLink) bool { return l.index == h.reach.link })
	if i < 0 || !h.links[i].hostly() {
		return Choice{}, fmt.Errorf("%s: the route is by loopback, or by an overlay's or a container's link; there are %s", flag, h)
	}
	l := h.links[i]
	l.sources = []netip.Addr{h.reach.src}
	u, err := l.use(s)
	if err != nil {
		return Choice{}, fmt.Errorf("%s: %w", flag, err)
	}
	return u, nil
}

// byDefaultRoute takes the preferred default route's link of those that have a default route in every family; rather one
// whose address is in use.
func (h host) byDefaultRoute(s Selector) (Choice, error) {
	link := func(index int) hostLink {
		return h.links[slices.IndexFunc(h.links, func(l hostLink) bool { return l.index == index })]
	}
	var best []string
	var common []int
	for i, f := range s.families() {
		var links []int
		for _, index := range h.defaults[f.af] {
			if slices.ContainsFunc(h.links, func(l hostLink) bool { return l.index == index && l.hostly() }) {
				links = append(links, index)
			}
		}
		if len(links) == 0 {
			return Choice{}, fmt.Errorf("no %s default route: name the link that carries the overlay with --iface; there are %s", f.name, h)
		}
		best = append(best, fmt.Sprintf("%s by %s", f.name, link(links[0]).name))
		if i == 0 {
			common = links
		}
		common = slices.DeleteFunc(common, func(index int) bool { return !slices.Contains(links, index) })
	}
	if len(common) == 0 {
		return Choice{}, fmt.Errorf("the default routes are by different links, %s: name one that has both families with --iface; there are %s",
			strings.Join(best, ", "), h)
	}
	used := slices.IndexFunc(common, func(index int) bool { return slices.ContainsFunc(s.InUse, link(index).usable) })
	u, err := link(common[max(used, 0)]).use(s)
	if err != nil {
		return Choice{}, fmt.Errorf("the default route's link: %w", err)
	}
	return u, nil
}

// use makes the link the underlay. The given addresses, if they are the link's, come before others of their family, and
// so do the public IPs.
func (l hostLink) use(s Selector, first ...netip.Addr) (Choice, error) {
	if l.loopback {
		return Choice{}, fmt.Errorf("%s: a loopback link reaches no peer", l.name)
	}
	if !l.up && l.mtu == 0 {
		return Choice{}, fmt.Errorf("%s: no link has a default route", l.name)
	}
	if !l.up {
		return Choice{}, fmt.Errorf("%s is down: ip link set %s up", l.name, l.name)
	}
	u := Choice{Link: l.name, NIC: l.mac, Index: l.index, MTU: l.mtu}
	for _, f := range s.families() {
		addr, ok := l.addr(f, append(first, s.PublicIPs...), s.InUse)
		if !ok {
			return Choice{}, fmt.Errorf("%s has no usable %s address, it has %s", l.name, f.name, l.addresses())
		}
		public := addr
		if i := slices.IndexFunc(s.PublicIPs, f.is); i >= 0 {
			public = s.PublicIPs[i]
		}
		u.Addrs = append(u.Addrs, addr)
		u.PublicIPs = append(u.PublicIPs, public)
	}
	return u, nil
}

// addr is the link's best address of the family: one that was asked for, else the one in use, else what the kernel would
// send from. Beside that, the address of a network comes before a single one, which may move to another host; IPv6's
// single ones come last in any case, because the kernel sends from the newest. IPv4's secondary addresses bear the flag
// of the temporary ones.
func (l hostLink) addr(f ipFamily, first, inUse []netip.Addr) (netip.Addr, bool) {
	usable := slices.DeleteFunc(slices.Clone(l.addrs), func(a hostAddr) bool {
		again := slices.Contains(inUse, a.ip) && a.flags&unix.IFA_F_TENTATIVE != 0 // after its link was down
		return !f.is(a.ip) || a.unfit() != "" && (!again || a.flags&unix.IFA_F_DADFAILED != 0)
	})
	if len(usable) == 0 {
		return netip.Addr{}, false
	}
	rank := func(a hostAddr) (rank int) {
		temporary, single := a.flags&unix.IFA_F_TEMPORARY != 0, a.bits == a.ip.BitLen()
		for _, bad := range []bool{
			!slices.Contains(first, a.ip),
			!slices.Contains(inUse, a.ip),
			a.ip.IsLinkLocalUnicast(),
			a.ip.Is6() && temporary,
			a.ip.Is6() && single,
			!slices.Contains(l.sources, a.ip),
			single,
			temporary,
			a.flags&unix.IFA_F_PERMANENT == 0,
		} {
			rank <<= 1
			if bad {
				rank++
			}
		}
		return rank
	}
	return slices.MinFunc(usable, func(a, b hostAddr) int { return cmp.Compare(rank(a), rank(b)) }).ip, true
}
