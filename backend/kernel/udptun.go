package kernel

import (
	"fmt"
	"net/netip"
)

// UDPTun is flannel's udp in a process (see UserSpace). Keyed by Name.
type UDPTun struct {
	Name  string
	Local netip.Addr
	Port  uint16
	MTU   int
}

// Key implements Object.
func (u UDPTun) Key() Key { return linkKey(u.Name) }

// Kind implements Object.
func (UDPTun) Kind() Kind { return KindLink }

func (u UDPTun) String() string {
	return fmt.Sprintf("overlayd-tun: udp link %s local %s port %d mtu %d", u.Name, u.Local, u.Port, u.MTU)
}

// UDPPeer is a subnet's way over a UDPTun. Keyed by Link and Subnet.
type UDPPeer struct {
	Link   string
	Subnet netip.Prefix
	Host   netip.Addr
}

// Key implements Object.
func (p UDPPeer) Key() Key { return Key{name: p.Link, prefix: p.Subnet} }

// Kind implements Object.
func (UDPPeer) Kind() Kind { return KindPeer }

func (p UDPPeer) String() string {
	return fmt.Sprintf("overlayd-tun: udp link %s subnet %s host %s", p.Link, p.Subnet, p.Host)
}

func (p UDPPeer) link() string { return p.Link }
