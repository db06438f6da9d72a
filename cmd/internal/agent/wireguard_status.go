package agent

import (
	"path/filepath"
	"slices"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
)

// wireGuardStatus says what the host's wireguard links are; nil: it has none.
func (a *Agent) wireGuardStatus(k kernel.Status) *api.WireGuard {
	if !a.programmed {
		return nil
	}
	s := &api.WireGuard{KeyFile: filepath.Join(a.cfg.State.dir, WireGuardFile), Peers: []api.WireGuardPeer{}}
	for _, o := range append(a.planner.self(a.own.Lease), a.retirement.objs...) {
		l, ok := o.(kernel.WireGuard)
		if !ok || slices.ContainsFunc(s.Links, func(x api.WireGuardLink) bool { return x.Name == l.Name }) {
			continue
		}
		s.PublicKey = l.Private.Public().String()
		s.Links = append(s.Links, api.WireGuardLink{Name: l.Name, Port: l.Port, UserSpace: slices.Contains(k.UserSpace, l.Name)})
	}
	if len(s.Links) == 0 {
		return nil
	}
	return s
}

// wireGuardPeers are what links know of a peer that has these objects.
func wireGuardPeers(l subnet.Lease, objs []kernel.Object, sessions map[kernel.WGPeerID]kernel.Session) (all []api.WireGuardPeer) {
	for _, o := range objs {
		p, ok := o.(kernel.WGPeer)
		if !ok {
			continue
		}
		know := sessions[p.ID()]
		s := api.WireGuardPeer{
			Link: p.Link, PublicKey: p.Public.String(), Host: l.Host, Outside: l.Outside(), Subnets: []string{},
			Received: know.Received, Sent: know.Sent,
		}
		for _, allowed := range p.Allowed {
			if allowed.IsValid() {
				s.Subnets = append(s.Subnets, allowed.String())
			}
		}
		if know.Endpoint.IsValid() {
			s.Endpoint = know.Endpoint.String()
		}
		if !know.Handshake.IsZero() {
			s.Handshake = new(know.Handshake)
		}
		all = append(all, s)
	}
	return all
}
