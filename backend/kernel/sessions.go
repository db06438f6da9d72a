package kernel

import (
	"maps"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/overlayd/overlayd/backend/task"
)

// Session is what a wireguard link knows of a peer.
type Session struct {
	Handshake time.Time // the latest; zero: never
	Endpoint  netip.AddrPort
	Received  uint64 // bytes, as the link counts them
	Sent      uint64
}

// sessionAge is how old the handshake of a session may be that is up, as Talos' KubeSpan has it: a session ends after 180 s
// (REJECT_AFTER_TIME of wireguard's paper), and the tries for the next after 90 (REKEY_ATTEMPT_TIME).
const sessionAge = 275 * time.Second

// Up tells whether the session can be in use.
func (s Session) Up(now time.Time) bool { return now.Sub(s.Handshake) < sessionAge }

func sessionOf(p *wgtypes.Peer) Session {
	return Session{p.LastHandshakeTime, endpointOf(p), uint64(p.ReceiveBytes), uint64(p.TransmitBytes)}
}

// Sessions is what wireguard links knew of their peers when they were last looked at. Nobody may change it.
func (r *Reconciler) Sessions() map[WGPeerID]Session {
	if all := r.sessions.Load(); all != nil {
		return *all
	}
	return nil
}

// SessionsChanged receives after a session came up or went down.
func (r *Reconciler) SessionsChanged() <-chan struct{} { return r.sessionsChanged.first() }

// Greet has wireguard shake hands with peers as soon as they are programmed, though there is nothing to send, and looks
// soon whether they answer.
func (r *Reconciler) Greet(peers ...WGPeerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.greet = append(r.greet, peers...)
	task.Signal(r.wake)
}

// takeSessions takes in what a link knows of its peers now.
func (r *Reconciler) takeSessions(link string, peers []wgtypes.Peer, now time.Time) {
	before := r.Sessions()
	all := make(map[WGPeerID]Session, max(len(before), len(peers)))
	for i := range peers {
		all[WGPeerID{link, WGKey(peers[i].PublicKey)}] = sessionOf(&peers[i])
	}
	changed := false
	for id, was := range before {
		if id.Link != link {
			all[id] = was
		}
		changed = changed || r.keeper.up[id] && !all[id].Up(now)
	}
	for id, is := range all {
		changed = changed || is.Up(now) && !r.keeper.up[id]
	}
	r.sessions.Store(&all)
	if !changed {
		return
	}
	r.keeper.up = make(map[WGPeerID]bool)
	for id, is := range all {
		if is.Up(now) {
			r.keeper.up[id] = true
		}
	}
	r.metrics.sessions.Set(float64(len(r.keeper.up)))
	r.sessionsChanged.ring()
}

// forgetSessions ends those of a link that is gone.
func (r *Reconciler) forgetSessions(link string, now time.Time) {
	r.takeSessions(link, nil, now)
	maps.DeleteFunc(r.keeper.peers, func(id WGPeerID, _ *tended) bool { return id.Link == link })
}
