package names

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// gateway is an address that this host has on a link with containers behind it.
type gateway struct {
	addr   netip.Addr
	link   int
	subnet netip.Prefix // of the link: who asks there is from it, or from a subnet of this host's
}

// gateways finds the addresses within this host's subnets by which its containers reach it, and the subnets of its other links.
// Where it serves already it goes on as long as the address is there: the host may have moved to other subnets, and its containers
// not yet.
func gateways(own []netip.Prefix, serving []netip.Addr) (all []gateway, near []netip.Prefix, err error) {
	if len(own) == 0 && len(serving) == 0 {
		return nil, nil, nil
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		ip = ip.Unmap()
		ones, _ := a.Mask.Size()
		p := netip.PrefixFrom(ip, ones)
		in := slices.ContainsFunc(own, func(o netip.Prefix) bool { return o.Contains(ip) && o.Masked().Addr() != ip })
		switch {
		case (in || slices.Contains(serving, ip)) && hasContainers(a.LinkIndex):
			all = append(all, gateway{ip, a.LinkIndex, p.Masked()})
		case !in && ip.IsGlobalUnicast() && !p.IsSingleIP():
			near = append(near, p.Masked())
		}
	}
	slices.SortFunc(all, func(a, b gateway) int { return a.addr.Compare(b.addr) })
	slices.SortFunc(near, netip.Prefix.Compare)
	return slices.CompactFunc(all, func(a, b gateway) bool { return a.addr == b.addr }), slices.Compact(near), nil
}

// hasContainers says whether containers may be behind a link: a bridge, or the host's end of what leads to one.
func hasContainers(index int) bool {
	link, err := netlink.LinkByIndex(index)
	return err == nil && (link.Type() == "bridge" || link.Type() == "veth")
}

// watchAddrs receives when addresses of this host have changed, but for those that every link has, and is closed when it cannot
// tell any more.
func watchAddrs() (moved <-chan struct{}, stop func()) {
	out, done := make(chan struct{}, 1), make(chan struct{})
	updates := make(chan netlink.AddrUpdate, 64)
	if err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{ErrorCallback: func(error) {}}); err != nil {
		close(out)
		return out, func() { close(done) }
	}
	go func() {
		defer close(out)
		for u := range updates {
			if ip, ok := netip.AddrFromSlice(u.LinkAddress.IP); ok && ip.IsLinkLocalUnicast() {
				continue
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, func() { close(done) }
}

// free lets a socket be bound to an address that the kernel is still looking for duplicates of.
func free(fd uintptr, v6 bool) error {
	if v6 {
		return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
	}
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
}

// tellLink has a socket say by which link a packet came.
func tellLink(fd uintptr, v6 bool) error {
	if v6 {
		return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

// linkOf is what it said; 0: nothing.
func linkOf(oob []byte) int {
	h, data, _, err := unix.ParseOneSocketControlMessage(oob)
	switch {
	case err != nil:
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= 4:
		return int(native.Uint32(data))
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= 20:
		return int(native.Uint32(data[16:]))
	}
	return 0
}
