package udptun

import (
	"math/bits"
	"net/netip"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"
)

// Peer is the host that has a subnet.
type Peer struct {
	Subnet netip.Prefix
	Host   netip.Addr
}

// peers are the hosts by subnet. It is not changed once it is in use.
type peers struct{ bySubnet *bart.Table[netip.Addr] }

func newPeers() *peers { return &peers{new(bart.Table[netip.Addr])} }

// with is p with some peers more, and others less.
func (p *peers) with(put []Peer, gone []netip.Prefix) *peers {
	next := &peers{p.bySubnet.Clone()}
	for _, subnet := range gone {
		next.bySubnet.Delete(subnet)
	}
	for _, peer := range put {
		next.bySubnet.Insert(peer.Subnet, peer.Host)
	}
	return next
}

func (p *peers) all() (all []Peer) {
	for subnet, host := range p.bySubnet.AllSorted() {
		all = append(all, Peer{subnet, host})
	}
	return all
}

// sockaddr is an address as the kernel takes it.
func sockaddr(host netip.Addr, port uint16) unix.RawSockaddrInet4 {
	return unix.RawSockaddrInet4{Family: unix.AF_INET, Port: bits.ReverseBytes16(port), Addr: host.As4()} // amd64 and arm64 are little-endian
}
