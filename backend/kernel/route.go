package kernel

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// RouteProtocol marks our routes in the kernel ("proto" in ip route). It is the o of overlay, and no number that
// rtnetlink.h, iproute2's rt_protos or FRR give to another program.
const RouteProtocol = 111

// The metrics of our routes are spread over metricSpread values from metricBase on. Linux finds the nexthop of an
// IPv4 route (fib_info_hashfn in net/ipv4/fib_semantics.c) in a hash over device, scope, protocol and metric but not
// the gateway: with one metric, all routes through one device share a bucket, and 60,000 of them take minutes
// instead of seconds; 65,536 metrics take a fifth less than 4,096. IPv6 does not need it and does not mind. The base is
// above 1024, IPv6's default metric: a put must not replace a route of somebody else. It is a multiple of the spread, so
// that a mask finds our metrics.
const (
	metricBase   = 1 << 16
	metricSpread = 1 << 16
)

// Route sends packets for Dst to Via, or into Link as they are. Keyed by Dst: its metric is derived from it, to spread the
// kernel's hash.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr // zero: none
	Link   string
	OnLink bool // Via is reachable on Link though no route says so
}

// Key implements Object.
func (r Route) Key() Key { return Key{prefix: r.Dst} }

// Kind implements Object.
func (Route) Kind() Kind { return KindRoute }

func (r Route) String() string {
	way := "dev " + r.Link
	if r.Via.IsValid() {
		way = fmt.Sprintf("via %s %s", r.Via, way)
	}
	if r.OnLink {
		way += " onlink"
	}
	return fmt.Sprintf("ip route replace %s %s proto %d metric %d", r.Dst, way, RouteProtocol, metric(r.Dst))
}

func (r Route) link() string { return r.Link }

// doneBy tells whether what is wanted in place of r, but for its metric, leads where r does.
func (r Route) doneBy(e *tracked) bool {
	if e == nil || e.want == nil {
		return false
	}
	as := e.want.(Route)
	return as.Via == r.Via && (r.Via.IsValid() || as.Link == r.Link)
}

func metric(dst netip.Prefix) uint32 {
	a := dst.Addr().As16()
	return metricBase + crc32.ChecksumIEEE(a[:])%metricSpread
}

func (r Route) encode(b *rtnl.Batch, op op, index int32) {
	h := unix.RtMsg{
		Family:   rtnl.FamilyOf(r.Dst.Addr()),
		Dst_len:  uint8(r.Dst.Bits()),
		Table:    unix.RT_TABLE_MAIN,
		Protocol: RouteProtocol,
		Type:     unix.RTN_UNICAST,
	}
	if r.OnLink {
		h.Flags = unix.RTNH_F_ONLINK
	}
	switch {
	case op == remove:
		h.Scope = unix.RT_SCOPE_NOWHERE // any
	case !r.Via.IsValid():
		h.Scope = unix.RT_SCOPE_LINK
	}
	b.Begin(op.message(unix.RTM_NEWROUTE), op.flags(), h)
	b.AttrAddr(unix.RTA_DST, r.Dst.Addr())
	b.AttrU32(unix.RTA_PRIORITY, metric(r.Dst))
	if op == put {
		if r.Via.IsValid() {
			b.AttrAddr(unix.RTA_GATEWAY, r.Via)
		}
		b.AttrU32(unix.RTA_OIF, uint32(index))
	}
	b.End()
}

// encodeGateway adds the request for a route to r's gateway itself, over the link alone.
func (r Route) encodeGateway(b *rtnl.Batch, op op, index int32) {
	h := unix.RtMsg{
		Family:   rtnl.FamilyOf(r.Via),
		Dst_len:  uint8(r.Via.BitLen()),
		Table:    unix.RT_TABLE_MAIN,
		Protocol: RouteProtocol,
		Scope:    unix.RT_SCOPE_LINK,
		Type:     unix.RTN_UNICAST,
	}
	b.Begin(op.message(unix.RTM_NEWROUTE), op.flags(), h)
	b.AttrAddr(unix.RTA_DST, r.Via)
	b.AttrU32(unix.RTA_PRIORITY, metric(r.Dst))
	b.AttrU32(unix.RTA_OIF, uint32(index))
	b.End()
}

// vacate asks to remove the route that is in the place of r, whose ever it is.
func (r Route) vacate(b *rtnl.Batch) {
	h := unix.RtMsg{
		Family:  rtnl.FamilyOf(r.Dst.Addr()),
		Dst_len: uint8(r.Dst.Bits()),
		Table:   unix.RT_TABLE_MAIN,
		Scope:   unix.RT_SCOPE_NOWHERE, // any
	}
	b.Begin(unix.RTM_DELROUTE, 0, h)
	b.AttrAddr(unix.RTA_DST, r.Dst.Addr())
	b.AttrU32(unix.RTA_PRIORITY, metric(r.Dst))
	b.End()
}

// decodeRoute reads an RTM_NEWROUTE or RTM_DELROUTE. Ours are the routes of our protocol. To the kernel, those of one
// table, destination and metric are in each other's place.
func decodeRoute(body []byte, names map[int32]string) found {
	var h unix.RtMsg
	attrs := rtnl.Header(body, &h)
	dst := netip.IPv4Unspecified()
	if h.Family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	r := Route{OnLink: h.Flags&unix.RTNH_F_ONLINK != 0}
	var priority uint32
	table := uint32(h.Table)
	for typ, data := range rtnl.Attributes(attrs) {
		switch {
		case typ == unix.RTA_DST:
			dst = rtnl.Addr(data)
		case typ == unix.RTA_GATEWAY:
			r.Via = rtnl.Addr(data)
		case typ == unix.RTA_OIF && len(data) == 4:
			r.Link = names[int32(binary.NativeEndian.Uint32(data))]
		case typ == unix.RTA_PRIORITY && len(data) == 4:
			priority = binary.NativeEndian.Uint32(data)
		case typ == unix.RTA_TABLE && len(data) == 4:
			table = binary.NativeEndian.Uint32(data)
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(h.Dst_len))
	main := table == unix.RT_TABLE_MAIN && h.Src_len == 0 && h.Tos == 0
	unicast := h.Type == unix.RTN_UNICAST
	if !unicast {
		r.Via, r.Link = netip.Addr{}, "" // whatever else it says: it is none that we make
	}
	switch {
	case h.Family != unix.AF_INET && h.Family != unix.AF_INET6, !r.Dst.IsValid(), h.Flags&unix.RTM_F_CLONED != 0:
		return found{}
	case main && priority == unreachableMetric:
		return decodeUnreachable(h, r.Dst)
	case h.Protocol == RouteProtocol && main && priority == metric(r.Dst):
		return found{object: r, mark: ours}
	case h.Protocol == RouteProtocol:
		return found{object: r, mark: stale}
	case main && priority == metric(r.Dst):
		return found{object: r, mark: conflicting}
	case h.Protocol == unix.RTPROT_BOOT && main && unicast:
		return found{object: r, mark: r.flannel(priority)}
	}
	return found{object: r}
}

// flannel tells what mark a route bears that could be of flannel's making, by its shape. On a vxlan link, its
// gateway is the first address of the very network it leads to; host-gw routes, and those into flannel's wireguard and udp
// links, look like anybody's, but for the metric.
func (r Route) flannel(priority uint32) ownership {
	plain := priority == 0 || r.Dst.Addr().Is6() && priority == 1024 // what ip route add gives
	switch {
	case !plain:
		return foreign
	case r.Via.IsValid() && r.OnLink && r.Via == r.Dst.Addr():
		return flannelVXLAN
	case r.Via.IsValid() && r.OnLink:
		return flannelIPIP
	case !r.OnLink:
		return flannelPlain
	}
	return foreign
}

// What may be ours of the routes: those of our protocol, and flannel's.
func dumpOwnRoutes(b *rtnl.Batch)  { dumpRoutes(b, RouteProtocol) }
func dumpBootRoutes(b *rtnl.Batch) { dumpRoutes(b, unix.RTPROT_BOOT) }

// dumpRoutes asks for the routes of one protocol, of both families.
func dumpRoutes(b *rtnl.Batch, protocol uint8) {
	b.Begin(unix.RTM_GETROUTE, 0, unix.RtMsg{Protocol: protocol})
	b.End()
}
