package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
)

// foreignRoutes looks for routes of others that lead packets for the network's range elsewhere.
func foreignRoutes(_ context.Context, h *Host) Finding {
	if h.Status == nil || len(h.Network.Pools) == 0 {
		return noDaemon()
	}
	if backend.ByOthers(h.Network.Backend.Type) {
		return skip("with this backend they are how other hosts' containers are reached")
	}
	var taken, near []string
	for _, pool := range h.Network.Pools {
		family := netlink.FAMILY_V6
		if pool.Prefix.Addr().Is4() {
			family = netlink.FAMILY_V4
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return unknown(err)
		}
		for _, r := range routes {
			dst, foreign := h.foreign(pool.Prefix, r)
			if !foreign {
				continue
			}
			text := fmt.Sprintf("%s by %s", dst, viaOf(r))
			if h.takes(dst) {
				taken = append(taken, text)
			} else {
				near = append(near, text)
			}
		}
	}
	switch {
	case len(taken) > 0:
		return fail("routes of others take packets for other hosts' containers: "+list(taken), "remove them, or give the overlay another range: overlayctl network set")
	case len(near) > 0:
		return warn("routes of others lie inside the network's range: "+list(near), "a host that is given such a subnet will not be reached: remove them, or reserve the subnet: overlayctl leases reserve")
	}
	return ok("none of others inside the network's range")
}

// foreign tells whether a route inside the range is neither ours nor that of this host's own containers.
func (h *Host) foreign(pool netip.Prefix, r netlink.Route) (netip.Prefix, bool) {
	if r.Dst == nil || r.Protocol == kernel.RouteProtocol {
		return netip.Prefix{}, false
	}
	addr, _ := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	dst := netip.PrefixFrom(addr.Unmap(), bits)
	if !pool.Contains(dst.Addr()) || dst.Bits() < pool.Bits() {
		return dst, false
	}
	own := slices.ContainsFunc(h.Status.Subnets, func(text string) bool {
		subnet, err := netip.ParsePrefix(text)
		return err == nil && subnet.Contains(dst.Addr()) && dst.Bits() >= subnet.Bits()
	})
	return dst, !own
}

// takes tells whether a route to dst wins against ours to a peer's subnet: it is as narrow (our metrics are high) or
// narrower.
func (h *Host) takes(dst netip.Prefix) bool {
	for _, p := range h.Status.Peers {
		for _, text := range p.Subnets {
			if subnet, err := netip.ParsePrefix(text); err == nil && subnet.Overlaps(dst) && dst.Bits() >= subnet.Bits() {
				return true
			}
		}
	}
	return false
}

func viaOf(r netlink.Route) string {
	name := "no link"
	if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
		name = link.Attrs().Name
	}
	if r.Gw != nil {
		return fmt.Sprintf("%s through %s", name, r.Gw)
	}
	return name
}
