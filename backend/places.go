package backend

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend/underlay"
	"github.com/overlayd/overlayd/subnet"
)

// Place is what a host reaches without the overlay, and must go on reaching so: an overlay that covers it takes the ground
// from under itself, and what would put it right cannot arrive any more.
type Place struct {
	Prefix netip.Prefix
	Name   string // as an error names it: "the gateway 192.0.2.1"
}

// At is the place of one address; name says what it is of.
func At(addr netip.Addr, name string) Place {
	return Place{netip.PrefixFrom(addr, addr.BitLen()), fmt.Sprintf("%s %s", name, addr)}
}

// Places lists what the network n must not cover on a host with these things around it: the addresses that the caller
// names, the gateways, and what is on the links. Not of these is what links to containers have of the overlay itself:
// of one of the host's own subnets, or of one that the host may have had.
func Places(around underlay.Around, addrs []Place, n subnet.Network, own []netip.Prefix) []Place {
	for _, g := range around.Gateways {
		addrs = append(addrs, At(g, "the gateway"))
	}
	places := addrs
	for _, c := range around.Connected {
		pool, _ := n.Pool(subnet.FamilyOf(c.Prefix.Addr()))
		has := func(p netip.Prefix) bool { return p.Bits() <= c.Prefix.Bits() && p.Contains(c.Prefix.Addr()) }
		leased := has(pool.Prefix) && c.Prefix.Bits() >= pool.SubnetLen || slices.ContainsFunc(own, has)
		if !c.Containers || !leased || slices.ContainsFunc(addrs, func(p Place) bool { return c.Prefix.Contains(p.Prefix.Addr()) }) {
			places = append(places, Place{c.Prefix, fmt.Sprintf("%s on %s", c.Prefix, c.Link)})
		}
	}
	return places
}

// Covers is the error that the network n covers one of the places; nil if it does not.
func Covers(n subnet.Network, places []Place) error {
	for _, pool := range n.Pools {
		for _, p := range places {
			if pool.Prefix.Overlaps(p.Prefix) {
				return fmt.Errorf("the network %s covers %s, which is to be reached without it: use another range", pool.Prefix, p.Name)
			}
		}
	}
	return nil
}
