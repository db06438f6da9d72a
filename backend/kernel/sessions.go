package kernel

import (
	"net/netip"
	"time"
)

// Session is what a wireguard link knows of a peer.
type Session struct {
	Handshake time.Time // the latest; zero: never
	Endpoint  netip.AddrPort
	Received  uint64 // bytes, as the link counts them
	Sent      uint64
}

// sessionAge is how old a handshake may be whose session is up: a session ends at 180 s (REJECT_AFTER_TIME in wireguard's
// paper), and a peer that hears nothing of its last try for another may take 90 more to say so.
const sessionAge = 275 * time.Second

// Up tells whether the session can be in use.
func (s Session) Up(now time.Time) bool { return now.Sub(s.Handshake) < sessionAge }

// Sessions is what wireguard links knew of their peers when they were last looked at. Nobody may change it.
func (r *Reconciler) Sessions() map[WGPeerID]Session { return nil }

// SessionsChanged receives after a session came up or went down.
func (r *Reconciler) SessionsChanged() <-chan struct{} { return r.sessionsChanged }

// Greet has wireguard shake hands with peers as soon as they are programmed, though there is nothing to send, and looks
// soon after whether they answer.
func (r *Reconciler) Greet(peers ...WGPeerID) {}
