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
	Around  underlay.Around
	Sysctls []kernel.Object // that the host needs to forward
}

// FindHost looks at this host as it is now, for the families and the backend of n. Links that it makes will have the
// MAC vtep.
func FindHost(n subnet.Network, s underlay.Selector, vtep kernel.MAC) (Host, error) {
	for _, pool := range n.Pools {
		s.IPv4 = s.IPv4 || pool.Prefix.Addr().Is4()
		s.IPv6 = s.IPv6 || pool.Prefix.Addr().Is6()
	}
	u, err := underlay.Find(netns.None(), s)
	if err != nil {
		return Host{}, err
	}
	h := Host{Index: u.Index, NIC: u.NIC, Host: backend.Host{
		Link: u.Link, Unbound: u.Unbound, MTU: u.MTU, VTEP: vtep,
		Addrs: byFamily(u.Addrs), PublicIPs: byFamily(u.PublicIPs),
		Adopted: map[subnet.Family]backend.Adopted{},
	}, Around: u.Around}
	for _, pool := range n.Pools {
		if err := h.adopt(n.Backend, subnet.FamilyOf(pool.Prefix.Addr())); err != nil {
			return Host{}, err
		}
	}
	if s.IPv6 {
		h.Sysctls = append(h.Sysctls, kernel.Sysctl{Name: "net.ipv6.conf.all.forwarding", Value: "1"})
	}
	if s.IPv4 {
		h.Sysctls = append(h.Sysctls, kernel.Sysctl{Name: "net.ipv4.ip_forward", Value: "1"})
	}
	return h, nil
}

// adopt finds the link of the network's vxlan if it is there already.
func (h *Host) adopt(cfg subnet.Backend, f subnet.Family) error {
	vni, port, err := backend.VXLAN(cfg)
	if err != nil || vni == 0 {
		return err
	}
	name, mac, err := kernel.FindVXLAN(netns.None(), vni, port, h.Addrs[f])
	if err != nil || name == "" {
		return err
	}
	h.Adopted[f] = backend.Adopted{Name: name, MAC: mac}
	return nil
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
