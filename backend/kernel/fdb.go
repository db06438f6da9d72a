package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// fdbState is that of our FDB entries. To the kernel it is NUD_PERMANENT (vxlan_cleanup and vxlan_snoop in
// drivers/net/vxlan/vxlan_core.c). NUD_REACHABLE beside it tells in a notification whose entry it is: flannel does not
// add that, bridge adds NUD_NOARP, and the kernel has both only for the default destination of a link, which ours have not.
const fdbState = unix.NUD_PERMANENT | unix.NUD_REACHABLE

// FDB sends frames for MAC on a vxlan link to the VTEP at Dst. Keyed by Link and MAC.
type FDB struct {
	Link string
	MAC  MAC
	Port uint16 // UDP, where it is not the link's; 0: it is
	Dst  netip.Addr
}

// Key implements Object.
func (f FDB) Key() Key { return Key{name: f.Link, mac: f.MAC} }

// Kind implements Object.
func (FDB) Kind() Kind { return KindFDB }

func (f FDB) String() string {
	port := ""
	if f.Port != 0 {
		port = fmt.Sprintf(" port %d", f.Port)
	}
	return fmt.Sprintf("bridge fdb replace %s dev %s dst %s%s self permanent", f.MAC, f.Link, f.Dst, port)
}

func (f FDB) link() string { return f.Link }

func (f FDB) encode(b *rtnl.Batch, op op, index int32) {
	h := unix.NdMsg{Family: unix.AF_BRIDGE, Ifindex: index, State: fdbState, Flags: unix.NTF_SELF}
	b.Begin(op.message(unix.RTM_NEWNEIGH), op.flags(), h)
	b.Attr(unix.NDA_LLADDR, f.MAC[:])
	if op == put {
		b.AttrAddr(unix.NDA_DST, f.Dst)
		if f.Port != 0 {
			b.Attr(unix.NDA_PORT, binary.BigEndian.AppendUint16(nil, f.Port))
		}
	}
	b.End()
}

// decodeFDB reads an RTM_NEWNEIGH or RTM_DELNEIGH of a bridge or vxlan link. Ours are the permanent ones.
func decodeFDB(body []byte, names map[int32]string) found {
	var h unix.NdMsg
	attrs := rtnl.Header(body, &h)
	f := FDB{Link: names[h.Ifindex]}
	special := false
	for typ, data := range rtnl.Attributes(attrs) {
		switch {
		case typ == unix.NDA_LLADDR:
			copy(f.MAC[:], data)
		case typ == unix.NDA_DST:
			f.Dst = rtnl.Addr(data)
		case typ == unix.NDA_PORT && len(data) == 2: // the kernel says it only where it is not the link's own
			f.Port = binary.BigEndian.Uint16(data)
		case typ == unix.NDA_VNI || typ == unix.NDA_IFINDEX: // and so these
			special = true
		}
	}
	if special {
		f.Dst = netip.Addr{}
	}
	if h.State&unix.NUD_PERMANENT == 0 {
		return found{object: f}
	}
	return found{object: f, mark: ours}
}

func dumpFDB(b *rtnl.Batch, index int32) {
	b.Begin(unix.RTM_GETNEIGH, 0, unix.NdMsg{Family: unix.AF_BRIDGE, Ifindex: index})
	b.End()
}
