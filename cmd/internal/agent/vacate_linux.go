package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// Vacate says whether nothing on this host has an address of the subnets: no container of which there is a record,
// no link but the overlay's own, and bridges that nothing is plugged into. From those it takes
// the addresses, for no runtime puts another onto a bridge that has one. That is true of every runtime's bridge, and of
// links that lead to one container each, whoever made them; another runtime's containers whose links leave no address on
// the host are not seen.
func Vacate(records []attachment.Attachment, subnets []netip.Prefix) (vacant bool, err error) {
	h, err := netlink.NewHandle()
	if err != nil {
		return false, fmt.Errorf("look for containers: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return false, fmt.Errorf("look for containers: list links: %w", err)
	}
	full, indexes := map[int]bool{}, map[int]bool{0: true}
	for _, l := range links {
		full[l.Attrs().MasterIndex], indexes[l.Attrs().Index] = true, true
	}
	for _, a := range records {
		// A container without an end on the host is there until somebody says that it is not.
		if a.HasAddressIn(subnets) && indexes[a.HostIfIndex] {
			return false, nil
		}
	}
	var stale []func() error
	for _, l := range links {
		if overlay(l) {
			continue
		}
		addrs, err := addrsIn(h, l, subnets)
		if err != nil {
			return false, err
		}
		for _, a := range addrs {
			if l.Type() != "bridge" || full[l.Attrs().Index] {
				return false, nil
			}
			stale = append(stale, func() error { return h.AddrDel(l, &a) })
		}
	}
	for _, remove := range stale {
		if err := remove(); err != nil {
			return false, fmt.Errorf("take the old gateway from a bridge: %w", err)
		}
	}
	return true, nil
}

// overlay says whether a link is one of an overlay's; a process's is one by its name.
func overlay(l netlink.Link) bool {
	if l.Type() == "tuntap" {
		return slices.ContainsFunc([]string{"overlay", "flannel", "ovw-", "ovx-", "ovu-"}, func(p string) bool { return strings.HasPrefix(l.Attrs().Name, p) })
	}
	return slices.Contains([]string{"vxlan", "wireguard", "ipip"}, l.Type())
}

// addrsIn lists the addresses of a link that are in one of the subnets.
func addrsIn(h *netlink.Handle, l netlink.Link, subnets []netip.Prefix) ([]netlink.Addr, error) {
	addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("look for containers: addresses of %s: %w", l.Attrs().Name, err)
	}
	return slices.DeleteFunc(addrs, func(a netlink.Addr) bool {
		ip, _ := netip.AddrFromSlice(a.IP)
		return !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
	}), nil
}
