package kernel

import (
	"fmt"
	"net/netip"
)

// Unreachable is a route that refuses, where no other leads there. Keyed by Dst.
type Unreachable struct{ Dst netip.Prefix }

// Key implements Object.
func (u Unreachable) Key() Key { return Key{name: "unreachable", prefix: u.Dst} }

// Kind implements Object.
func (Unreachable) Kind() Kind { return KindRoute }

func (u Unreachable) String() string {
	return fmt.Sprintf("ip route replace unreachable %s proto %d metric 4294967295", u.Dst, RouteProtocol)
}
