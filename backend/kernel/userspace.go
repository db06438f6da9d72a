package kernel

import "errors"

// UserSpace makes links that the kernel cannot make: a process of its own serves them by TUN, and outlives this one. Such a
// link is of the kernel's kind "tun" and bears an alias (IFLA_IFALIAS) that says what it is: AliasWireGuard, or UDPTun.Alias.
// Links are deleted as others are: the process notices. All methods may be called at any time, and are bounded in time.
// Package userspace implements it.
type UserSpace interface {
	// WireGuard makes a wireguard link and sets it up; wgctrl finds it then, and can configure it. One that is there already
	// stays as it is. A link of the name that is another's is an error.
	WireGuard(name string, mtu int) error
	// UDP makes a link for flannel's udp and sets it up, or brings one that is there to these values; its peers stay.
	UDP(UDPTun) error
	// SetUDPPeers puts peers of a link, and removes others by their Subnet. Removing the absent is no error.
	SetUDPPeers(link string, put, gone []UDPPeer) error
	// UDPPeers are the peers that a link has, in no order.
	UDPPeers(link string) ([]UDPPeer, error)
}

// AliasWireGuard is the alias of a wireguard link that a process serves.
const AliasWireGuard = "overlayd-tun wireguard"

var errNoUserSpace = errors.New("the kernel cannot make it, and overlayd-tun is not asked")
