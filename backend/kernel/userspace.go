package kernel

// UserSpace makes the links that the kernel cannot: in a process that outlives this one.
type UserSpace interface {
	// WireGuard makes a wireguard link without a key, and returns when wgctrl finds it. One that is there is no error.
	WireGuard(name string, mtu int) error
	// UDP makes a link of flannel's udp, or brings one that is there to the values of u.
	UDP(u UDPTun) error
	// SetUDPPeers adds subnets to those that a link of UDP reaches, or takes some from them.
	SetUDPPeers(link string, put, gone []UDPPeer) error
}
