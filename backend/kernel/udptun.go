package kernel

import (
	"fmt"
	"net/netip"
)

// UDPTun is a link for flannel's udp that a process serves (see UserSpace): each packet that is sent into it goes to the peer of
// its subnet, as the payload of a datagram, and nothing else. Keyed by Name.
type UDPTun struct {
	Name  string
	Local netip.Addr // source of the outer packets; IPv4
	Port  uint16     // UDP, of all hosts
	MTU   int
}

// UDPPeer is the way to a peer's subnet by an UDPTun. Keyed by Link and Subnet.
type UDPPeer struct {
	Link   string
	Subnet netip.Prefix
	Host   netip.Addr // of the outer packets
}

// Alias is the alias of the link, which tells what netlink does not.
func (u UDPTun) Alias() string { return fmt.Sprintf("overlayd-tun udp %s:%d", u.Local, u.Port) }
