package kernel

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// unreachableMetric lets every route that others may have win. It is not the largest that there is: FRR's zebra takes the upper
// eight bits of a foreign route's metric for its distance, and 255 for one not to be used (netlink_route_change_read_unicast).
const unreachableMetric = 1<<24 - 1

// Unreachable is a route that refuses what no other leads anywhere: the sender is told, and nothing goes round in circles.
// Where the host's containers are, there is another; and a routing daemon has something to announce before there are any.
type Unreachable struct{ Dst netip.Prefix }

// Key implements Object. It is not that of a Route to the same network: the kernel has both.
func (u Unreachable) Key() Key { return Key{name: "unreachable", prefix: u.Dst} }

// Kind implements Object.
func (Unreachable) Kind() Kind { return KindRoute }

func (u Unreachable) String() string {
	return fmt.Sprintf("ip route replace unreachable %s proto %d metric %d", u.Dst, RouteProtocol, unreachableMetric)
}

// link implements entry: it is on none.
func (Unreachable) link() string { return "" }

func (u Unreachable) encode(b *rtnl.Batch, op op, _ int32) {
	b.Begin(op.message(unix.RTM_NEWROUTE), op.flags(), unix.RtMsg{
		Family:   rtnl.FamilyOf(u.Dst.Addr()),
		Dst_len:  uint8(u.Dst.Bits()),
		Table:    unix.RT_TABLE_MAIN,
		Protocol: RouteProtocol,
		Type:     unix.RTN_UNREACHABLE,
	})
	b.AttrAddr(unix.RTA_DST, u.Dst.Addr())
	b.AttrU32(unix.RTA_PRIORITY, unreachableMetric)
	b.End()
}

// decodeUnreachable is the end of decodeRoute for what is in the main table and has the metric of an Unreachable.
func decodeUnreachable(h unix.RtMsg, dst netip.Prefix) found {
	switch {
	case h.Protocol == RouteProtocol && h.Type == unix.RTN_UNREACHABLE:
		return found{object: Unreachable{dst}, mark: ours}
	case h.Protocol == RouteProtocol:
		return found{object: Unreachable{dst}, mark: stale}
	}
	return found{object: Unreachable{dst}, mark: conflicting}
}
