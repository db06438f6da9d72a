package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// WireGuard is the kind of backend that encrypts. A host of such a network sends nothing in plain text.
const WireGuard = "wireguard"

const (
	// WireGuardOverhead is what flannel takes from the underlay's MTU, in bytes: outer IPv6 header, UDP, and wireguard's header and tag.
	WireGuardOverhead = 40 + 8 + 32
	// WireGuardMark is that of packets which wireguard links send: none of them is to be sent by such a link again.
	WireGuardMark = 0x1000000
	// NATKeepalive is how often a host behind NAT says that it is there, in seconds, so that the router does not forget it (wg(8)).
	NATKeepalive = 25
)

// WireGuardOptions are flannel's keys under Backend, with what they are if not given.
type WireGuardOptions struct {
	ListenPort   uint16 // UDP
	ListenPortV6 uint16 // of the second link, which Mode separate has in a dual-stack network
	PSK          string // base64
	MTU          int    // of the underlay, bytes; 0: that of its link
	Mode         string
	// PersistentKeepaliveInterval is in seconds; 0: only where NAT asks for it.
	PersistentKeepaliveInterval uint16

	psk kernel.Secret
}

// wireguard encrypts packets and sends them by UDP. A peer is its key, and what inner addresses it may have; one route leads
// all of the network into the link, so that what is no peer's goes nowhere.
type wireguard struct {
	WireGuardOptions
	host   Host
	public kernel.WGKey                       // the host's; to find it takes longer than all else of a peer
	links  map[subnet.Family]kernel.WireGuard // but in Mode separate it is one for both
}

func parseWireGuard(options json.RawMessage) (WireGuardOptions, []string, error) {
	o := WireGuardOptions{ListenPort: 51820, ListenPortV6: 51821, Mode: "separate"}
	unknown, err := decode(options, &o, "Type", "ListenPort", "ListenPortV6", "PSK", "MTU", "Mode", "PersistentKeepaliveInterval")
	if err == nil && o.PSK != "" {
		if o.psk, err = kernel.ParseSecret(o.PSK); err != nil {
			err = fmt.Errorf("network config: Backend.PSK: %w", err)
		}
	}
	switch {
	case err != nil:
		return o, nil, err
	case !slices.Contains([]string{"separate", "auto", "ipv4", "ipv6"}, o.Mode):
		return o, nil, fmt.Errorf("network config: Backend.Mode: %q is none of separate, auto, ipv4 and ipv6", o.Mode)
	case o.ListenPort == 0 || o.ListenPortV6 == 0:
		return o, nil, errors.New("network config: Backend.ListenPort and ListenPortV6: 0 is no port: leave it out for 51820 and 51821")
	case o.ListenPort == o.ListenPortV6 && !o.Single():
		return o, nil, fmt.Errorf("network config: Backend.ListenPortV6: %d is ListenPort: in Mode separate each link has its own", o.ListenPortV6)
	case o.MTU < 0:
		return o, nil, fmt.Errorf("network config: Backend.MTU: %d is not a number of bytes", o.MTU)
	case o.MTU != 0 && o.MTU < leastMTU(subnet.IPv4)+WireGuardOverhead: // IPv6 is judged when the host is known
		return o, nil, fmt.Errorf("network config: Backend.MTU: %d leaves %d bytes for containers: IPv4 needs %d",
			o.MTU, max(0, o.MTU-WireGuardOverhead), leastMTU(subnet.IPv4))
	}
	return o, unknown, nil
}

// ParseWireGuard are the options of a network of wireguard.
func ParseWireGuard(b subnet.Backend) (WireGuardOptions, error) {
	o, _, err := parseWireGuard(b.Options)
	return o, err
}

// Single says whether one link carries both families.
func (o WireGuardOptions) Single() bool { return o.Mode != "separate" }

// Port is where hosts of the network listen for what comes from a family's link.
func (o WireGuardOptions) Port(f subnet.Family) uint16 {
	if f == subnet.IPv6 && !o.Single() {
		return o.ListenPortV6
	}
	return o.ListenPort
}

func (o WireGuardOptions) bind(host Host) (Backend, error) {
	if host.WireGuard == (kernel.Secret{}) {
		return nil, errors.New("this host has no wireguard key")
	}
	if o.MTU > host.MTU {
		return nil, fmt.Errorf("network config: Backend.MTU: %d is more than %s carries (%d)", o.MTU, host.Link, host.MTU)
	}
	if o.MTU == 0 {
		o.MTU = host.MTU
	}
	b := wireguard{WireGuardOptions: o, host: host, public: host.WireGuard.Public(), links: map[subnet.Family]kernel.WireGuard{}}
	for f := range host.Addrs {
		l := kernel.WireGuard{Name: kernel.Named(kernel.WireGuardName, host.Network), Private: host.WireGuard, Port: o.Port(f), Mark: WireGuardMark, MTU: b.MTU()}
		flannels := kernel.FlannelWireGuardName
		if f == subnet.IPv6 && !o.Single() {
			l.Name, flannels = kernel.Named(kernel.WireGuardName6, host.Network), kernel.FlannelWireGuardName6
		}
		if host.Network == "" && b.has(flannels) && !b.has(l.Name) {
			l.Name = flannels
		}
		b.links[f] = l
	}
	return b, checkMTU(host, b.MTU())
}

// has says whether there is a wireguard link of a name that has the host's key, or had it before that changed.
func (b wireguard) has(name string) bool {
	for _, o := range b.host.Former {
		if l, ok := o.(kernel.WireGuard); ok && l.Name == name {
			return true
		}
	}
	return slices.ContainsFunc(b.host.Present, func(e kernel.Existing) bool {
		l, ok := e.Link.(kernel.WireGuard)
		return ok && l.Name == name && l.Private.Public() == b.public
	})
}

func (b wireguard) MTU() int      { return b.WireGuardOptions.MTU - WireGuardOverhead }
func (wireguard) WantsNear() bool { return false }

func (b wireguard) Local(own subnet.Endpoint) []kernel.Object {
	f := subnet.FamilyOf(own.Subnet.Addr())
	link := b.links[f]
	objs := []kernel.Object{link, kernel.Address{Link: link.Name, Prefix: netip.PrefixFrom(own.Subnet.Addr(), f.Bits())}}
	for _, r := range b.host.Ranges {
		if subnet.FamilyOf(r.Addr()) == f { // and where the link is gone, it goes nowhere
			objs = append(objs, kernel.Route{Dst: r, Link: link.Name}, kernel.Unreachable{Dst: r})
		}
	}
	return objs
}

func (b wireguard) Peer(own, peer subnet.Endpoint, _ bool) (string, []kernel.Object, error) {
	objs, err := b.peer(subnet.Lease{Endpoints: []subnet.Endpoint{own}}, subnet.Lease{Endpoints: []subnet.Endpoint{peer}})
	return WireGuard, objs, err
}

// peer are the objects that reach a peer in all families, of which one link may carry both.
func (b wireguard) peer(own, peer subnet.Lease) (objs []kernel.Object, err error) {
	var peers []kernel.WGPeer
	var port uint16 // where one link has both families: flannel's hosts listen where the lease says for IPv4
	one := b.Single() || oneLink(peer)
	for _, e := range peer.Endpoints {
		f := subnet.FamilyOf(e.Subnet.Addr())
		link := b.links[f]
		if l, ok := b.links[subnet.IPv4]; one && ok {
			link = l
		}
		if _, ok := own.Endpoint(f); !ok || link.Name == "" {
			continue
		}
		d, key, err := b.parseData(e, link.Port)
		if err != nil {
			return nil, err
		}
		if one {
			if port == 0 && d.Port != b.ListenPortV6 {
				port = d.Port
			}
			d.Port = port
			if port == 0 {
				d.Port = b.ListenPort
			}
		}
		p := kernel.WGPeer{Link: link.Name, Public: key, PSK: b.psk, Keepalive: b.keepalive(f, e.PublicIP)}
		at := d.Endpoints
		if public := netip.AddrPortFrom(e.PublicIP, d.Port); e.PublicIP.IsValid() {
			if e.PublicIP != b.host.PublicIPs[f] {
				at = append([]netip.AddrPort{public}, at...)
			} else { // both are behind one NAT, which may not let in what its own hosts send to it
				at = append(slices.DeleteFunc(at, func(a netip.AddrPort) bool { return a == public }), public)
			}
		}
		if i := slices.IndexFunc(peers, func(o kernel.WGPeer) bool { return o.Link == p.Link }); i >= 0 {
			if peers[i].Public != key {
				return nil, fmt.Errorf("BackendV6Data: PublicKey %s is not that of BackendData, and Mode %s has one link", key, b.Mode)
			}
			peers[i].Allowed[1] = e.Subnet
			peers[i].Keepalive = max(peers[i].Keepalive, p.Keepalive)
			addEndpoints(&peers[i], at, b.Mode == "ipv6")
		} else {
			p.Allowed[0] = e.Subnet
			addEndpoints(&p, at, false)
			peers = append(peers, p)
		}
		objs = append(objs, kernel.Route{Dst: e.Subnet, Link: link.Name})
	}
	for _, p := range peers {
		objs = append(objs, p)
	}
	return objs, nil
}

// addEndpoints has a peer be reached at more addresses, behind or before those that it has.
func addEndpoints(p *kernel.WGPeer, more []netip.AddrPort, first bool) {
	all := slices.DeleteFunc(slices.Clone(p.Endpoints[:]), func(a netip.AddrPort) bool { return !a.IsValid() })
	if first {
		all = append(slices.Clone(more), all...)
	} else {
		all = append(all, more...)
	}
	p.Endpoints = [len(p.Endpoints)]netip.AddrPort{}
	n := 0
	for _, a := range all {
		if n < len(p.Endpoints) && !slices.Contains(p.Endpoints[:n], a) {
			p.Endpoints[n] = a
			n++
		}
	}
}

// keepalive is how often the host says to a peer that it is there, in seconds; 0: never.
func (b wireguard) keepalive(f subnet.Family, peer netip.Addr) uint16 {
	switch {
	case b.PersistentKeepaliveInterval != 0:
		return b.PersistentKeepaliveInterval
	case peer.IsValid() && (b.behindNAT(f) || private(b.host.Addrs[f]) && !private(peer)):
		return NATKeepalive
	}
	return 0
}

// shared is what a provider's customers have behind one address (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

func private(a netip.Addr) bool { return a.IsPrivate() || shared.Contains(a) }
