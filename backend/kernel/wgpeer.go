package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
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

// peerOf is a peer as its link tells of it, without its endpoint: that is where it is, and not where it was said to be. Of
// more addresses than ours have it has none.
func peerOf(link string, p *wgtypes.Peer) WGPeer {
	o := WGPeer{Link: link, Public: WGKey(p.PublicKey), PSK: Secret(p.PresharedKey)}
	o.Keepalive = uint16(p.PersistentKeepaliveInterval / time.Second)
	if len(p.AllowedIPs) <= len(o.Allowed) {
		for i, a := range p.AllowedIPs {
			o.Allowed[i] = prefixOf(a)
		}
	}
	return o
}

// takesFor is o, as its link tells of it, in the terms of what is wanted and had of it: the order of its addresses is
// nobody's concern, nor where it has roamed to. Of one that was not known, and is not where it should be, it is asked
// whether its session is up.
func (o WGPeer) takesFor(e *tracked, at netip.AddrPort, up bool) WGPeer {
	want, ok := e.want.(WGPeer)
	if !ok {
		return o
	}
	if o.Allowed[0] == want.Allowed[1] && o.Allowed[1] == want.Allowed[0] {
		o.Allowed = want.Allowed
	}
	had, known := e.had.(WGPeer)
	switch {
	case !at.IsValid() && want.Endpoints[0].IsValid():
	case known:
		o.Endpoints = had.Endpoints
	case up || !want.Endpoints[0].IsValid() || slices.Contains(want.Endpoints[:], at):
		o.Endpoints = want.Endpoints
	}
	return o
}

// endpoints are those that are said.
func (p WGPeer) endpoints() []netip.AddrPort {
	n := slices.IndexFunc(p.Endpoints[:], func(a netip.AddrPort) bool { return !a.IsValid() })
	if n < 0 {
		n = len(p.Endpoints)
	}
	return p.Endpoints[:n]
}
