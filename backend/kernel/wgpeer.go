package kernel

import (
	"fmt"
	"net/netip"
	"strings"
)

// WGPeer is a peer of a wireguard link. Keyed by Link and Public.
type WGPeer struct {
	Link      string
	Public    WGKey
	Allowed   [2]netip.Prefix   // the inner addresses that are its; zero: no more
	Endpoints [4]netip.AddrPort // as published, the first first; zero: no more; none at all: it calls us
	PSK       Secret            // zero: none
	Keepalive uint16            // seconds; 0: none
}

// WGPeerID tells a peer of a wireguard link from all others.
type WGPeerID struct {
	Link string
	Key  WGKey
}

// Key implements Object.
func (p WGPeer) Key() Key { return Key{name: p.Link + " " + string(p.Public[:])} }

// Kind implements Object.
func (WGPeer) Kind() Kind { return KindPeer }

// ID is what Sessions knows the peer by.
func (p WGPeer) ID() WGPeerID { return WGPeerID{p.Link, p.Public} }

func (p WGPeer) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "wg set %s peer %s", p.Link, p.Public)
	if p.PSK != (Secret{}) {
		s.WriteString(" preshared-key FILE")
	}
	if p.Endpoints[0].IsValid() {
		fmt.Fprintf(&s, " endpoint %s", p.Endpoints[0])
	}
	if p.Keepalive != 0 {
		fmt.Fprintf(&s, " persistent-keepalive %d", p.Keepalive)
	}
	var allowed []string
	for _, a := range p.Allowed {
		if a.IsValid() {
			allowed = append(allowed, a.String())
		}
	}
	fmt.Fprintf(&s, " allowed-ips %q", strings.Join(allowed, ","))
	return s.String()
}

func (p WGPeer) link() string { return p.Link }
