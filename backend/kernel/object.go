// Package kernel brings one Linux network namespace to a set of desired objects and holds it there: links,
// addresses, neighbours, FDB entries, peers of tunnels and routes.
package kernel

import (
	"fmt"
	"net/netip"
)

// Kind orders the kinds of objects as they are programmed; they are removed in reverse. Links come first because
// all others stand on them; routes last, because they are what sends packets into all the rest.
type Kind uint8

// The kinds of kernel objects.
const (
	KindLink Kind = iota
	KindAddress
	KindNeighbour
	KindFDB
	KindPeer // of a wireguard link, or of flannel's udp
	KindRoute
	kinds
)

func (k Kind) String() string {
	return [kinds]string{"link", "address", "neighbour", "fdb", "peer", "route"}[k]
}

// Object is one thing in the kernel as it should be. Every implementation is a comparable value of this package;
// two objects with equal keys are the same thing to the kernel.
type Object interface {
	// Key tells the object from the others of its kind.
	Key() Key
	// Kind tells when the object is programmed.
	Kind() Kind
	// String is the command that would make the object, in the syntax of ip or bridge.
	String() string
}

// Claim is what an owner wants to be in the kernel: a peer's lease, say. An owner that wants nothing is gone.
type Claim struct {
	Owner   string
	Objects []Object
}

// Key is what the kernel knows an object of some kind by.
type Key struct {
	name   string // of the link, or whatever else has a name
	prefix netip.Prefix
	mac    MAC
}

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
