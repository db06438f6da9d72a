package kernel

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// tended is what is known of a peer's silence.
type tended struct {
	was    Session
	heard  time.Time // when something came from it, or it was first seen
	going  time.Time // when something went to it, the first time since; zero: nothing did
	went   time.Time // the last time
	turned time.Time // when it got another endpoint
	vain   int       // how many it got, one after the other, to which nothing went
}

// tend gives the peers of a link that do not answer their next endpoint.
func (r *Reconciler) tend(l look, now time.Time) {
	var turned []wgtypes.PeerConfig
	trackers := r.claims.trackers[KindPeer]
	for i := range l.device.Peers {
		p := &l.device.Peers[i]
		id := WGPeerID{l.link.name, WGKey(p.PublicKey)}
		e := trackers.wanted(WGPeer{Link: id.Link, Public: id.Key}.Key())
		if e == nil || e.differs() {
			delete(r.keeper.peers, id)
			continue
		}
		t := r.keeper.peers[id]
		if t == nil {
			t = &tended{was: sessionOf(p), heard: now}
			r.keeper.peers[id] = t
		}
		is := sessionOf(p)
		t.saw(is, now)
		want := e.want.(WGPeer)
		if !r.keeper.silent(t, now, len(want.endpoints())) {
			continue
		}
		next := r.nextEndpoint(want, is.Endpoint)
		if !next.IsValid() {
			continue
		}
		if t.turned.Before(t.heard) {
			r.log.Info("peer does not answer: looking for it at its next endpoint", "peer", id.Key, "link", id.Link, "endpoint", next)
		}
		t.turn(now)
		turned = append(turned, wgtypes.PeerConfig{PublicKey: p.PublicKey, UpdateOnly: true, Endpoint: net.UDPAddrFromAddrPort(next)})
	}
	r.turnEndpoints(l.link.name, turned)
}

func (r *Reconciler) turnEndpoints(link string, peers []wgtypes.PeerConfig) {
	if len(peers) == 0 {
		return
	}
	r.metrics.turns.Add(float64(len(peers)))
	c, err := dialWG(r.ns)
	if err == nil {
		defer c.close()
		for some := range slices.Chunk(peers, wgBatch) {
			if err = c.set(link, wgtypes.Config{Peers: some}); err != nil {
				break
			}
		}
	}
	if err != nil {
		r.log.Warn("endpoints not set", "link", link, "err", err)
	}
}

// saw takes in what is known of the peer now.
func (t *tended) saw(is Session, now time.Time) {
	if is.Received > t.was.Received && is.Up(now) || is.Handshake.After(t.was.Handshake) {
		t.heard, t.going = now, time.Time{}
	} else if is.Sent > t.was.Sent {
		if t.going.IsZero() {
			t.going = now
		}
		t.went, t.vain = now, 0
	}
	t.was = is
}

// silent tells whether the peer, of so many endpoints, does not answer where it is sought, and was long enough. What stops to
// be sent after a turn may be so because nothing can be sent to the new endpoint: others have theirs, once each.
func (k *keeper) silent(t *tended, now time.Time, endpoints int) bool {
	if t.going.IsZero() || now.Sub(t.going) < k.silence || now.Sub(t.turned) < k.turn {
		return false
	}
	return now.Sub(t.went) < max(k.turn, 2*k.every) || t.turned.After(t.heard) && t.vain < endpoints
}

func (t *tended) turn(now time.Time) {
	t.turned = now
	t.vain++
}

// nextEndpoint is the one to try after the one in use, if there is another that a route leads to: after one that nobody
// has published, the first.
func (r *Reconciler) nextEndpoint(p WGPeer, used netip.AddrPort) netip.AddrPort {
	all := p.endpoints()
	at := slices.Index(all, used)
	for i := range all {
		next := all[(at+1+i)%len(all)]
		if next != used && (len(all) == 1 || r.reachable(next.Addr())) {
			return next
		}
	}
	return netip.AddrPort{}
}

// endpointFor is the endpoint to give to a peer that had, if it was there, others than it should; the zero value to leave it
// where it is: because none is published, or because its session is up at one that is, or at one that it roamed to.
func (r *Reconciler) endpointFor(had, want WGPeer, there bool) netip.AddrPort {
	all := want.endpoints()
	if len(all) == 0 || there && had.Endpoints == want.Endpoints {
		return netip.AddrPort{}
	}
	if there && had.Endpoints[0].IsValid() {
		s := r.Sessions()[want.ID()]
		if s.Up(time.Now()) && (had.Endpoints[0] == want.Endpoints[0] || slices.Contains(all, s.Endpoint)) {
			return netip.AddrPort{}
		}
	}
	if first := r.nextEndpoint(want, netip.AddrPort{}); first.IsValid() {
		return first
	}
	return all[0]
}

// reachable tells whether a route leads to a.
func (r *Reconciler) reachable(a netip.Addr) bool {
	r.batch.Reset()
	r.batch.Begin(unix.RTM_GETROUTE, 0, unix.RtMsg{Family: rtnl.FamilyOf(a), Dst_len: uint8(a.BitLen())})
	r.batch.AttrAddr(unix.RTA_DST, a)
	r.batch.End()
	failed, err := r.conn.Exec(&r.batch, nil)
	return err == nil && failed[0] == nil
}
