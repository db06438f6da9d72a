package kernel

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
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

func (n Neighbour) encode(b *batch, op op, index int32) {
	h := unix.NdMsg{Family: familyOf(n.IP), Ifindex: index, State: unix.NUD_PERMANENT, Type: unix.RTN_UNICAST}
	b.begin(op.message(unix.RTM_NEWNEIGH), op.flags(), h)
	b.attrAddr(unix.NDA_DST, n.IP)
	if op == put {
		b.attr(unix.NDA_LLADDR, n.MAC[:])
	}
	b.end()
}

// decodeNeighbour reads an RTM_NEWNEIGH or RTM_DELNEIGH of ARP or NDP. Ours are the permanent ones on our links.
func decodeNeighbour(body []byte, names map[int32]string) found {
	var h unix.NdMsg
	attrs := header(body, &h)
	n := Neighbour{Link: names[h.Ifindex]}
	for typ, data := range attributes(attrs) {
		switch typ {
		case unix.NDA_DST:
			n.IP = addr(data)
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

func dumpNeighbours(b *batch, index int32) {
	b.begin(unix.RTM_GETNEIGH, 0, unix.NdMsg{})
	b.attrU32(unix.NDA_IFINDEX, uint32(index))
	b.end()
}
