package agent

import (
	"net/netip"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/underlay"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// Host is the underlay as the agent uses it.
type Host struct {
	backend.Host
	Index   int    // of the underlay's link
	NIC     string // its MAC
	Machine string // digest of the hardware; empty: unknown
	Around  underlay.Around
	Uplinks []string // by which packets leave the host
}

// FindHost looks at this host as it is now, for the families of n. Links that it makes will have the MAC of state or, where n
// needs one, its key of wireguard: it has one then.
func FindHost(n subnet.Network, s underlay.Selector, state *State) (Host, error) {
	for _, pool := range n.Pools {
		s.IPv4 = s.IPv4 || pool.Prefix.Addr().Is4()
		s.IPv6 = s.IPv6 || pool.Prefix.Addr().Is6()
	}
	u, err := underlay.Find(netns.None(), s)
	if err != nil {
		return Host{}, err
	}
	h := Host{Index: u.Index, NIC: u.NIC, Machine: hardware(u.NIC), Host: backend.Host{
		Link: u.Link, Unbound: u.Unbound, MTU: u.MTU, VTEP: state.VTEP,
		Addrs: byFamily(u.Addrs), PublicIPs: byFamily(u.PublicIPs),
	}, Around: u.Around, Uplinks: u.Uplinks}
	h.Lacks = func(f kernel.Feature) error { return kernel.Lacks(netns.None(), f) }
	if h.Present, err = kernel.Links(netns.None()); err != nil {
		return Host{}, err
	}
	if n.Backend.Type == backend.WireGuard {
		err = state.needWireGuard(flannelLinkKey(h.Present))
	}
	h.WireGuard = state.WireGuard
	return h, err
}

// flannelLinkKey is the key of wireguard links that flanneld made; zero: there are none.
func flannelLinkKey(present []kernel.Existing) kernel.Secret {
	for _, p := range present {
		if l, ok := p.Link.(kernel.WireGuard); ok && (l.Name == kernel.FlannelWireGuardName || l.Name == kernel.FlannelWireGuardName6) {
			return l.Private
		}
	}
	return kernel.Secret{}
}

// InUse are the addresses that peers may know the host by from what it remembers.
func InUse(last leasecache.View) (addrs []netip.Addr) {
	if last.Last != nil {
		for _, e := range last.Last.Endpoints {
			addrs = append(addrs, e.PublicIP)
		}
	}
	return addrs
}

func byFamily(addrs []netip.Addr) map[subnet.Family]netip.Addr {
	m := map[subnet.Family]netip.Addr{}
	for _, a := range addrs {
		m[subnet.FamilyOf(a)] = a
	}
	return m
}
