// Package subnet says what an overlay network, its pools and its leases are: flannel's wire format for all of
// them, which subnets are free and who gets which, and the subnet.env file that container runtimes read.
// It does no I/O but that file.
package subnet

import (
	"encoding/json"
	"net/netip"
)

// Family is an IP address family.
type Family uint8

// The address families, in the order in which networks and leases list them.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf returns the family of a valid address; an IPv4-mapped IPv6 address counts as IPv6.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Bits is the length of the family's addresses in bits.
func (f Family) Bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}

func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// Pool is the range of one family that leases are cut from.
type Pool struct {
	Prefix    netip.Prefix // the whole overlay network, masked
	SubnetLen int          // prefix length of each lease
	Min, Max  netip.Addr   // address of the first and of the last subnet that may be leased
}

// Backend is the network's choice of how packets travel between hosts.
type Backend struct {
	Type    string          // lower case: "vxlan", "host-gw", …
	Options json.RawMessage // the whole Backend object as configured, Type included; nil if there was none
}

// Network is a validated network configuration.
type Network struct {
	Pools   []Pool // one per enabled family, IPv4 before IPv6; never empty
	Backend Backend
	Unknown []string // paths of keys that neither flannel nor overlayd knows, sorted
}

// Endpoint is what a lease says for one family.
type Endpoint struct {
	Subnet   netip.Prefix
	PublicIP netip.Addr      // where the host is reached on the underlay; the zero Addr if it did not say
	Data     json.RawMessage // the backend's own: BackendData or BackendV6Data, compact JSON; nil if absent
}

// Lease is one host's claim of a subnet in each family.
type Lease struct {
	HostID    string     // overlayd's random host identity; empty if flannel made the lease
	Host      string     // the host's name, for people; empty if flannel made the lease
	Backend   string     // BackendType; empty for flannel's udp and alloc
	Endpoints []Endpoint // IPv4 before IPv6
}

// Record is a lease as etcd holds it.
type Record struct {
	Lease
	CreateRevision int64 // of the key; of two leases that overlap the older one counts
	ModRevision    int64
	LeaseID        int64 // etcd's lease; 0: the key does not expire, it is a reservation
}
