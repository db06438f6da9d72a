package etcdstore

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/subnet"
)

// owner says whose the value at a key is.
type owner uint8

const (
	nobody owner = iota // no value
	junk                // a value that is no lease
	ours
	theirs
)

// ownerOf says whose a lease is. Without a HostID it is flannel's, and flannel knows hosts by their address alone:
// if that is ours, flannel ran on this host. A peer outside the network may be behind the same address. A lease with our address and the HostID of another host is the other's,
// be it that host's mistake or ours.
func ownerOf(l, wish subnet.Lease) owner {
	switch {
	case l.HostID == wish.HostID:
		return ours
	case l.HostID == "" && !l.Outside() && sharesAddress(l, wish):
		return ours
	}
	return theirs
}

// sharesAddress reports whether two leases name one underlay address.
func sharesAddress(a, b subnet.Lease) bool {
	for _, x := range a.Endpoints {
		for _, y := range b.Endpoints {
			if x.PublicIP.IsValid() && x.PublicIP == y.PublicIP {
				return true
			}
		}
	}
	return false
}

// behindNAT says whether a host's address is its router's, as the data of a lease can say: others may have it too.
func behindNAT(l subnet.Lease) bool {
	return slices.ContainsFunc(l.Endpoints, func(e subnet.Endpoint) bool { return bytes.Contains(e.Data, []byte(`"NAT":true`)) })
}

// leaseFor is what the host's lease of these subnets is to say.
func leaseFor(wish subnet.Lease, subnets []netip.Prefix) subnet.Lease {
	l := wish
	l.Endpoints = make([]subnet.Endpoint, len(subnets))
	for i, p := range subnets {
		for _, e := range wish.Endpoints {
			if a := addressOf(e); a.IsValid() && a.Is4() == p.Addr().Is4() {
				l.Endpoints[i] = e
			}
		}
		l.Endpoints[i].Subnet = p
	}
	return l
}

// addressOf is an address of the endpoint's family.
func addressOf(e subnet.Endpoint) netip.Addr {
	if e.PublicIP.IsValid() {
		return e.PublicIP
	}
	return e.Subnet.Addr()
}
