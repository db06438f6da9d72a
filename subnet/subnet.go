// Package subnet says what an overlay network, its pools and its leases are: flannel's wire format for all of
// them, which subnets are free and who gets which, and the subnet.env file that container runtimes read.
// It does no I/O but that file.
package subnet

import (
	"net/netip"
	"strings"
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

// String is "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// maxDocument is how many bytes of a network config or a subnet.env are read. flannel's are below 1 KiB; etcd would
// store 1.5 MiB.
const maxDocument = 64 << 10

// clip shortens text that others wrote, for an error message: also to what is before a {, for among the members of a
// backend's options there may be a key, and messages are logged.
func clip[T ~string | ~[]byte](text T) string {
	const most = 80
	short := string(text[:min(len(text), most)])
	if at := strings.IndexByte(short, '{'); at >= 0 {
		short = short[:at+1]
	}
	if len(short) < len(text) {
		return short + "…"
	}
	return short
}
