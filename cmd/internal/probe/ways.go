package probe

import (
	"net/netip"

	"github.com/overlayd/overlayd/cmd/internal/api"
)

// Way is where a peer is asked about one of its subnets.
type Way struct {
	Subnet netip.Prefix
	// Overlay is asked for the way of containers' packets. Of a host with a tunnel it is the first address of its subnet,
	// which its link has; with other backends the host's own address, because nothing else is sure to be there.
	// It is not valid if the host is not reached at all.
	Overlay netip.Addr
	// Underlay is the host's own address; not valid if its lease does not say it.
	Underlay netip.Addr
}

// tunnels are the backends whose links have the first address of their host's subnet.
var tunnels = map[string]bool{"vxlan": true, "wireguard": true, "ipip": true, "udp": true}

// Tunnelled says whether Overlay is asked by another way than Underlay.
func (w Way) Tunnelled() bool { return w.Overlay.IsValid() && w.Overlay != w.Underlay }

// Reserved says whether a peer is only a subnet that is kept for a host, which is not there.
func Reserved(p api.Peer) bool { return p.Path == "" && p.Error == "" }

// Ways returns the way to each subnet of a peer.
func Ways(p api.Peer) []Way {
	var ways []Way
	for _, text := range p.Subnets {
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			continue
		}
		w := Way{Subnet: subnet}
		for _, ip := range p.PublicIPs {
			if addr, err := netip.ParseAddr(ip); err == nil && addr.Is4() == subnet.Addr().Is4() {
				w.Underlay = addr
			}
		}
		switch {
		case p.Path == "": // no way
		case tunnels[p.Backend], tunnels[p.Path]: // flannel's udp names no backend; its link has the address, also if the path is a direct one
			w.Overlay = subnet.Addr()
		default:
			w.Overlay = w.Underlay
		}
		ways = append(ways, w)
	}
	return ways
}
