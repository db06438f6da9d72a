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
