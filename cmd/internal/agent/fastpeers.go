package agent

import (
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
)

// fast is the fast path as the agent uses it.
type fast interface {
	SetOwn(FastEnd)
	Replace(all []fastpath.Claim)
	Update(changed []fastpath.Claim)
	Active() bool
	Empty() bool
	Loaded() <-chan struct{}
	SetMode(api.FastPathMode)
	Status() (api.FastPath, map[netip.Prefix]fastpath.PeerPackets)
}

// end is the host's own end of the fast path. Packets that carry the policy of a group by their mark stay on the slow way.
func (p *planner) end(own, former []netip.Prefix) FastEnd {
	e := FastEnd{
		Own:  fastpath.Own{Underlay: p.host.Index, MTU: p.own.MTU(), Subnets: append(slices.Clone(own), former...)},
		Link: p.host.Link, Direct: p.own.WantsNear(), Networks: ranges(&p.network),
	}
	if p.host.Unbound {
		e.Underlay = 0
	}
	for _, l := range p.tunnels {
		if !l.GBP {
			e.Tunnels = append(e.Tunnels, fastpath.Tunnel{Addr: l.Local, Port: l.Port, VNI: l.VNI, MAC: l.MAC, Link: l.Name})
		}
	}
	return e
}

// fast are the ways to a peer's subnets that kernel objects make for its lease. What is reached without a tunnel by a host that
// else has one stays slow: what would see its packets there was not looked for.
func (p *planner) fast(objs []kernel.Object, lease subnet.Lease, near func(netip.Addr) bool) (peers []fastpath.Peer) {
	for _, e := range lease.Endpoints {
		for _, o := range objs {
			r, ok := o.(kernel.Route)
			if !ok || r.Dst != e.Subnet {
				continue
			}
			source, zero := backend.Told(e.Data)
			peer := fastpath.Peer{Subnet: r.Dst, Host: r.Via, Source: source, Near: near(e.PublicIP), ZeroChecksum: zero}
			direct := r.Link == p.host.Link && p.own.WantsNear()
			if !direct && !p.wrapped(objs, r, &peer) {
				peer = fastpath.Peer{Subnet: r.Dst} // and no part of a wider one
			}
			peers = append(peers, peer)
		}
	}
	return peers
}

// wrapped completes a peer whose packets a vxlan link wraps.
func (p *planner) wrapped(objs []kernel.Object, r kernel.Route, peer *fastpath.Peer) bool {
	at := slices.IndexFunc(p.tunnels, func(l kernel.VXLAN) bool { return l.Name == r.Link })
	var link kernel.VXLAN
	if at >= 0 {
		link = p.tunnels[at]
	}
	for _, o := range objs {
		switch o := o.(type) {
		case kernel.VXLAN:
			if o.Name == r.Link {
				link = o
			}
		case kernel.Neighbour:
			if o.Link == r.Link && o.IP == r.Via {
				peer.MAC = o.MAC
			}
		}
	}
	peer.VNI, peer.Port = link.VNI, link.Port
	for _, o := range objs {
		if f, ok := o.(kernel.FDB); ok && f.Link == r.Link && f.MAC == peer.MAC {
			if peer.Host = f.Dst; f.Port != 0 {
				peer.Port = f.Port
			}
			return link.VNI != 0 && !link.GBP && peer.MAC != kernel.MAC{}
		}
	}
	return false
}

// fastClaims are the ways that owners of kernel objects have.
func (a *Agent) fastClaims(claims []kernel.Claim) (all []fastpath.Claim) {
	if !a.cfg.Fast.Active() {
		return nil
	}
	all = make([]fastpath.Claim, 0, len(claims))
	for _, c := range claims {
		way := fastpath.Claim{Owner: c.Owner}
		if peer := a.peers[c.Owner]; peer != nil && len(c.Objects) > 0 {
			way.Peers = a.planner.fast(c.Objects, peer.Lease, a.isNear)
		}
		all = append(all, way)
	}
	return all
}

// holdBack has the fast path carry nothing for owners whose kernel objects are about to change.
func (a *Agent) holdBack(changed []kernel.Claim) {
	if !a.cfg.Fast.Active() {
		return
	}
	all := make([]fastpath.Claim, len(changed))
	for i, c := range changed {
		all[i].Owner = c.Owner
	}
	a.cfg.Fast.Update(all)
}

// offerFast has the fast path know this host's end, once the kernel is there, and after it was loaded all peers.
func (a *Agent) offerFast() error {
	if !a.programmed || !a.fastOffered && a.cfg.Kernel.Status().Pending > 0 {
		return nil
	}
	a.fastOffered = true
	a.cfg.Fast.SetOwn(a.planner.end(a.own.Subnets(), a.former))
	return nil
}

// fillFast has a fast path that was loaded just now know all peers.
func (a *Agent) fillFast() error {
	if a.programmed && a.cfg.Fast.Empty() {
		keys := make([]string, 0, len(a.peers))
		for key := range a.peers {
			keys = append(keys, key)
		}
		a.cfg.Fast.Replace(a.fastClaims(a.planPeers(keys)))
	}
	return nil
}

// SetFastPath has the fast path used, or not, until the daemon starts again.
func (a *Agent) SetFastPath(mode api.FastPathMode) { a.cfg.Fast.SetMode(mode) }
