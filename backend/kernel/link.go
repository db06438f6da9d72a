package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// VXLAN is a vxlan link. Keyed by Name.
type VXLAN struct {
	Name     string
	VNI      uint32
	Port     uint16     // UDP destination port, host byte order
	Local    netip.Addr // source of the outer packets; its family is the underlay's
	Underlay string     // name of the link that carries the outer packets; empty: any, as the routes say
	MAC      MAC
	MTU      int
	GBP      bool
	Learning bool
}

// What a vxlan link may have that ours never have: tunnels from elsewhere, packet by packet, and a bridge that it belongs to.
const (
	external = "external metadata"
	enslaved = "a master"
)

// Key implements Object.
func (v VXLAN) Key() Key { return linkKey(v.Name) }

func linkKey(name string) Key { return Key{name: name} }

// Kind implements Object.
func (VXLAN) Kind() Kind { return KindLink }

func (v VXLAN) String() string {
	s := fmt.Sprintf("ip link add %s up address %s mtu %d type vxlan id %d local %s", v.Name, v.MAC, v.MTU, v.VNI, v.Local)
	if v.Underlay != "" {
		s += " dev " + v.Underlay
	}
	s += fmt.Sprintf(" dstport %d", v.Port)
	if v.Learning {
		s += " learning"
	} else {
		s += " nolearning"
	}
	if v.GBP {
		s += " gbp"
	}
	return s
}

// Same says whether v and o are one link to the kernel: it allows no second one of a VNI and port over a family.
func (v VXLAN) Same(o VXLAN) bool {
	return v.VNI == o.VNI && v.Port == o.Port && v.Local.Is6() == o.Local.Is6()
}

// Aside is v under a name that leaves its own to another link of the VNI, with another port.
func (v VXLAN) Aside() VXLAN {
	v.Name = fmt.Sprintf("overlay.p%d", v.Port)
	if v.Local.Is6() {
		v.Name = fmt.Sprintf("overlay6.p%d", v.Port) // 15 bytes at most, as the kernel allows
	}
	return v
}

// link is a link as it is in the kernel.
type link struct {
	index    int32
	name     string
	kind     string
	up       bool
	vxlan    VXLAN  // for that kind; without the name of the underlay
	underlay int32  // the index of the link below a vxlan
	over6    bool   // the outer packets are IPv6
	foreign  string // what a vxlan link has that ours never have
}

// ours tells whether l can be what we made for v, whatever others made of it since.
func (l link) ours(v VXLAN) bool {
	return l.kind == "vxlan" && (l.foreign == "" || l.foreign == enslaved) &&
		l.vxlan.VNI == v.VNI && l.vxlan.Port == v.Port && l.over6 == v.Local.Is6()
}

// like tells whether l is as v wants it, but for what the kernel changes in place.
func (l link) like(v VXLAN) bool {
	return l.ours(v) && l.foreign == "" && l.vxlan.GBP == v.GBP
}

// ownMade tells whether we made l, by what it is and the name that we give such a link; adopted ones keep theirs.
func (l link) ownMade() bool {
	v := l.vxlan
	own := fmt.Sprintf("overlay.%d", v.VNI)
	if l.over6 {
		own = fmt.Sprintf("overlay6.%d", v.VNI)
	}
	return l.ours(v) && (l.name == own || l.name == v.Aside().Name)
}

// is tells whether l is exactly as v wants it.
func (l link) is(v VXLAN, underlay int32) bool {
	have := l.vxlan
	have.Underlay = v.Underlay
	return l.kind == "vxlan" && l.foreign == "" && l.up && l.underlay == underlay && have == v
}

// decodeLink reads an RTM_NEWLINK or RTM_DELLINK.
func decodeLink(body []byte) link {
	var h unix.IfInfomsg
	attrs := rtnl.Header(body, &h)
	l := link{index: h.Index, up: h.Flags&unix.IFF_UP != 0}
	for typ, data := range rtnl.Attributes(attrs) {
		switch {
		case typ == unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(data)
		case typ == unix.IFLA_MTU && len(data) == 4:
			l.vxlan.MTU = int(binary.NativeEndian.Uint32(data))
		case typ == unix.IFLA_ADDRESS:
			copy(l.vxlan.MAC[:], data)
		case typ == unix.IFLA_MASTER:
			l.foreign = enslaved
		case typ == unix.IFLA_LINKINFO:
			l.info(data)
		}
	}
	l.vxlan.Name = l.name
	return l
}

func (l *link) info(data []byte) {
	for typ, data := range rtnl.Attributes(data) {
		switch {
		case typ == unix.IFLA_INFO_KIND:
			l.kind = unix.ByteSliceToString(data)
		case typ == unix.IFLA_INFO_DATA && l.kind == "vxlan":
			l.vxlanInfo(data)
		}
	}
}

func (l *link) vxlanInfo(data []byte) {
	for typ, data := range rtnl.Attributes(data) {
		l.over6 = l.over6 || typ == nl.IFLA_VXLAN_LOCAL6 || typ == nl.IFLA_VXLAN_GROUP6
		switch {
		case typ == nl.IFLA_VXLAN_ID && len(data) == 4:
			l.vxlan.VNI = binary.NativeEndian.Uint32(data)
		case typ == nl.IFLA_VXLAN_PORT && len(data) == 2:
			l.vxlan.Port = binary.BigEndian.Uint16(data)
		case typ == nl.IFLA_VXLAN_LOCAL || typ == nl.IFLA_VXLAN_LOCAL6:
			l.vxlan.Local = rtnl.Addr(data)
		case typ == nl.IFLA_VXLAN_LINK && len(data) == 4:
			l.underlay = int32(binary.NativeEndian.Uint32(data))
		case typ == nl.IFLA_VXLAN_LEARNING && len(data) == 1:
			l.vxlan.Learning = data[0] != 0
		case typ == nl.IFLA_VXLAN_GBP:
			l.vxlan.GBP = true
		case typ == nl.IFLA_VXLAN_GROUP || typ == nl.IFLA_VXLAN_GROUP6:
			l.foreign = "a group or remote"
		case typ == nl.IFLA_VXLAN_FLOWBASED && len(data) == 1 && data[0] != 0:
			l.foreign = external
		}
	}
}

// create adds the request that makes the link, up and with its MAC from the first moment: udev would give one that
// comes without another.
func (v VXLAN) create(b *rtnl.Batch, underlay int32) {
	b.Begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.IfInfomsg{Flags: unix.IFF_UP, Change: unix.IFF_UP})
	b.AttrString(unix.IFLA_IFNAME, v.Name)
	b.Attr(unix.IFLA_ADDRESS, v.MAC[:])
	b.AttrU32(unix.IFLA_MTU, uint32(v.MTU))
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.AttrString(unix.IFLA_INFO_KIND, "vxlan")
		b.Nest(unix.IFLA_INFO_DATA, func() {
			b.AttrU32(nl.IFLA_VXLAN_ID, v.VNI)
			b.Attr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, v.Port))
			if v.GBP {
				b.Attr(nl.IFLA_VXLAN_GBP, nil)
			}
			v.changeable(b, underlay)
		})
	})
	b.End()
}

// change adds the requests that bring a link of the same VNI and port to v, where it stands. They are two because the
// kernel takes no MTU in the one that changes the vxlan (vxlan_nl2conf in drivers/net/vxlan/vxlan_core.c).
func (v VXLAN) change(b *rtnl.Batch, have link, underlay int32) {
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{Index: have.index, Flags: unix.IFF_UP, Change: unix.IFF_UP})
	if have.vxlan.MAC != v.MAC {
		b.Attr(unix.IFLA_ADDRESS, v.MAC[:])
	}
	if have.vxlan.MTU != v.MTU {
		b.AttrU32(unix.IFLA_MTU, uint32(v.MTU))
	}
	b.End()
	if have.vxlan.Local == v.Local && have.vxlan.Learning == v.Learning && have.underlay == underlay {
		return
	}
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{Index: have.index})
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.AttrString(unix.IFLA_INFO_KIND, "vxlan")
		b.Nest(unix.IFLA_INFO_DATA, func() { v.changeable(b, underlay) })
	})
	b.End()
}

func (v VXLAN) changeable(b *rtnl.Batch, underlay int32) {
	local := uint16(nl.IFLA_VXLAN_LOCAL)
	if v.Local.Is6() {
		local = nl.IFLA_VXLAN_LOCAL6
	}
	b.AttrAddr(local, v.Local)
	b.AttrU32(nl.IFLA_VXLAN_LINK, uint32(underlay))
	learning := uint8(0)
	if v.Learning {
		learning = 1
	}
	b.AttrU8(nl.IFLA_VXLAN_LEARNING, learning)
}

func encodeRenameLink(b *rtnl.Batch, index int32, name string) {
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{Index: index})
	b.AttrString(unix.IFLA_IFNAME, name)
	b.End()
}

func encodeDeleteLink(b *rtnl.Batch, index int32) {
	b.Begin(unix.RTM_DELLINK, 0, unix.IfInfomsg{Index: index})
	b.End()
}

// linkByName reads one link; unix.ENODEV if there is none.
func linkByName(c *rtnl.Conn, b *rtnl.Batch, name string) (link, error) {
	b.Reset()
	b.Begin(unix.RTM_GETLINK, 0, unix.IfInfomsg{})
	b.AttrString(unix.IFLA_IFNAME, name)
	b.End()
	var l link
	failed, err := c.Exec(b, func(_ int, body []byte) { l = decodeLink(body) })
	if err == nil {
		err = failed[0]
	}
	return l, err
}

// dumpLinks reads all links.
func dumpLinks(c *rtnl.Conn, b *rtnl.Batch) (map[int32]link, error) {
	all := make(map[int32]link)
	b.Reset()
	b.Begin(unix.RTM_GETLINK, 0, unix.IfInfomsg{})
	b.End()
	err := c.Dump(b, func(body []byte) {
		l := decodeLink(body)
		all[l.index] = l
	})
	return all, err
}

// linkTable knows the links of the namespace, to tell names from indexes.
type linkTable struct {
	names  map[int32]string
	byName map[string]link
}

func newLinkTable() *linkTable {
	return &linkTable{names: map[int32]string{}, byName: map[string]link{}}
}

// set takes l as it is now, and returns what was known of its name before: the zero link for nothing.
func (t *linkTable) set(l link) (before link) {
	before = t.byName[l.name]
	if name := t.names[l.index]; name != l.name {
		delete(t.byName, name)
	}
	t.names[l.index] = l.name
	t.byName[l.name] = l
	return before
}

// drop forgets a link, and returns what was known of it.
func (t *linkTable) drop(index int32) (before link) {
	name := t.names[index]
	delete(t.names, index)
	before = t.byName[name]
	if before.index == index {
		delete(t.byName, name)
	}
	return before
}
