package kernel

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Neighbour is a permanent ARP or NDP entry on one of our links. Keyed by Link and IP.
type Neighbour struct {
	Link string
	IP   netip.Addr
	MAC  MAC
}

// Key implements Object.
func (n Neighbour) Key() Key { return Key{name: n.Link, prefix: netip.PrefixFrom(n.IP, n.IP.BitLen())} }

// Kind implements Object.
func (Neighbour) Kind() Kind { return KindNeighbour }

func (n Neighbour) String() string {
	return fmt.Sprintf("ip neighbour replace %s lladdr %s nud permanent dev %s", n.IP, n.MAC, n.Link)
}

func (n Neighbour) link() string { return n.Link }

func (n Neighbour) encode(b *rtnl.Batch, op op, index int32) {
	h := unix.NdMsg{Family: rtnl.FamilyOf(n.IP), Ifindex: index, State: unix.NUD_PERMANENT, Type: unix.RTN_UNICAST}
	b.Begin(op.message(unix.RTM_NEWNEIGH), op.flags(), h)
	b.AttrAddr(unix.NDA_DST, n.IP)
	if op == put {
		b.Attr(unix.NDA_LLADDR, n.MAC[:])
	}
	b.End()
}

// decodeNeighbour reads an RTM_NEWNEIGH or RTM_DELNEIGH of ARP or NDP. Ours are the permanent ones on our links.
func decodeNeighbour(body []byte, names map[int32]string) found {
	var h unix.NdMsg
	attrs := rtnl.Header(body, &h)
	n := Neighbour{Link: names[h.Ifindex]}
	for typ, data := range rtnl.Attributes(attrs) {
		switch typ {
		case unix.NDA_DST:
			n.IP = rtnl.Addr(data)
		case unix.NDA_LLADDR:
			copy(n.MAC[:], data)
		}
	}
	switch {
	case !n.IP.IsValid():
		return found{}
	case h.State&unix.NUD_PERMANENT == 0:
		return found{object: n}
	}
	return found{object: n, mark: ours}
}

func dumpNeighbours(b *rtnl.Batch, index int32) {
	b.Begin(unix.RTM_GETNEIGH, 0, unix.NdMsg{})
	b.AttrU32(unix.NDA_IFINDEX, uint32(index))
	b.End()
}
