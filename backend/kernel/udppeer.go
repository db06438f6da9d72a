package kernel

import (
	"fmt"
	"net/netip"
)

// UDPPeer is the way to a peer's subnet by an UDPTun. Keyed by Link and Subnet.
type UDPPeer struct {
	Link   string
	Subnet netip.Prefix
	Host   netip.Addr // of the outer packets
}

// Key implements Object.
func (p UDPPeer) Key() Key { return Key{name: p.Link, prefix: p.Subnet} }

// Kind implements Object.
func (UDPPeer) Kind() Kind { return KindPeer }

func (p UDPPeer) String() string {
	return fmt.Sprintf("overlayd-tun: udp link %s subnet %s host %s", p.Link, p.Subnet, p.Host)
}

func (p UDPPeer) link() string { return p.Link }

// udpLook is what a process told of a link's peers.
type udpLook struct {
	link  string
	peers []UDPPeer
	err   error
}

// lookAtUDP asks for the peers of links for flannel's udp. It runs beside the loop.
func (r *Reconciler) lookAtUDP(links []link) (looks []udpLook) {
	for _, l := range links {
		if _, ok := l.info.(udpInfo); ok && r.userSpace != nil {
			peers, err := r.userSpace.UDPPeers(l.name)
			looks = append(looks, udpLook{l.name, peers, err})
		}
	}
	return looks
}

// auditUDPPeers takes in which peers there are. Of a link whose process says nothing, those that were.
func (r *Reconciler) auditUDPPeers(looks []udpLook) {
	t := r.claims.trackers[KindPeer]
	heard := map[string]bool{}
	for _, l := range looks {
		heard[l.link] = l.err == nil
		for _, is := range l.peers {
			t.dumped(t.entry(is.Key()), is)
		}
	}
	for _, e := range t.entries {
		if had, ok := e.had.(UDPPeer); ok && !heard[had.Link] {
			e.seen = t.dump
		}
	}
}
