// Package kernel brings one Linux network namespace to a set of desired objects and holds it there: links,
// addresses, neighbours, FDB entries, routes, nftables rules and sysctls.
package kernel

import (
	"fmt"
	"net/netip"
)

// Kind orders the kinds of objects as they are programmed; they are removed in reverse.
type Kind uint8

// The kinds of kernel objects.
const (
	KindSysctl Kind = iota
	KindFirewall
	KindLink
	KindAddress
	KindNeighbour
	KindFDB
	KindRoute
)

// Object is one thing in the kernel as it should be. Every implementation is a comparable value of this package;
// two objects with equal keys are the same thing to the kernel.
type Object interface {
	// Key is the object with everything zeroed that does not tell it from others of its kind.
	Key() Object
	// Kind tells when the object is programmed.
	Kind() Kind
	// String is the command that would make the object, in the syntax of ip, bridge, nft or sysctl.
	String() string
}

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// VXLAN is a vxlan link. Keyed by Name.
type VXLAN struct {
	Name     string
	VNI      uint32
	Port     uint16     // UDP destination port, host byte order
	Local    netip.Addr // source of the outer packets; its family is the underlay's
	Underlay string     // name of the link that carries the outer packets
	MAC      MAC
	MTU      int
	GBP      bool
	Learning bool
}

// Address is an address on one of our links, with no broadcast address. Keyed by everything.
type Address struct {
	Link   string
	Prefix netip.Prefix // the address and its prefix length
}

// Neighbour is a permanent ARP or NDP entry on one of our links. Keyed by Link and IP.
type Neighbour struct {
	Link string
	IP   netip.Addr
	MAC  MAC
}

// FDB sends frames for MAC on a vxlan link to the VTEP at Dst. Keyed by Link and MAC.
type FDB struct {
	Link string
	MAC  MAC
	Dst  netip.Addr
}

// Route sends packets for Dst to Via. Keyed by Dst: its metric is derived from it, to spread the kernel's hash.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr
	Link   string
	OnLink bool // Via is reachable on Link though no route says so
}

// Masquerade hides packets from Network behind the host when they leave Network. Keyed by Network.
type Masquerade struct{ Network netip.Prefix }

// Accept lets packets from and to Network be forwarded, also where iptables' FORWARD policy is DROP.
// Keyed by Network.
type Accept struct{ Network netip.Prefix }

// Sysctl is a kernel parameter, named like net.ipv4.ip_forward. Keyed by Name.
type Sysctl struct{ Name, Value string }
