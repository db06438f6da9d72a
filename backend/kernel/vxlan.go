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
	// ZeroChecksum has it take UDP over IPv6 without a checksum. It cannot be changed: where it need not, a link that does is as good.
	ZeroChecksum bool
	ARP          bool // it asks for addresses, and answers; a link that does goes on: to end it costs it all its neighbours
}

// Of include/uapi/linux/if_link.h, and in no Go package: IFLA_INET6_ADDR_GEN_MODE and IN6_ADDR_GEN_MODE_NONE.
const (
	inet6AddrGenMode = 8
	addrGenModeNone  = 1
)

// Key implements Object.
func (v VXLAN) Key() Key { return linkKey(v.Name) }

// Kind implements Object.
func (VXLAN) Kind() Kind { return KindLink }

func (v VXLAN) String() string {
	arp := " arp off"
	if v.ARP {
		arp = ""
	}
	s := fmt.Sprintf("ip link add %s up%s address %s mtu %d type vxlan id %d local %s", v.Name, arp, v.MAC, v.MTU, v.VNI, v.Local)
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
	if v.ZeroChecksum {
		s += " udp6zerocsumrx"
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

func (v VXLAN) name() string  { return v.Name }
func (v VXLAN) below() string { return v.Underlay }
func (v VXLAN) inner6() bool  { return v.Local.Is6() }

// vxlanInfo is what the kernel says of a vxlan link.
type vxlanInfo struct {
	vni           uint32
	port          uint16
	local         netip.Addr
	underlay      int32 // the index of the link below
	over6         bool  // the outer packets are IPv6
	gbp, learning bool
	zeroChecksum  bool
	fixed         bool // it has a group or a remote, as ours never have
	external      bool // it takes its tunnels from elsewhere, packet by packet, as ours never do
}

func decodeVXLAN(data []byte) linkInfo {
	var v vxlanInfo
	for typ, data := range rtnl.Attributes(data) {
		v.over6 = v.over6 || typ == nl.IFLA_VXLAN_LOCAL6 || typ == nl.IFLA_VXLAN_GROUP6
		switch {
		case typ == nl.IFLA_VXLAN_ID && len(data) == 4:
			v.vni = binary.NativeEndian.Uint32(data)
		case typ == nl.IFLA_VXLAN_PORT && len(data) == 2:
			v.port = binary.BigEndian.Uint16(data)
		case typ == nl.IFLA_VXLAN_LOCAL || typ == nl.IFLA_VXLAN_LOCAL6:
			v.local = rtnl.Addr(data)
		case typ == nl.IFLA_VXLAN_LINK && len(data) == 4:
			v.underlay = int32(binary.NativeEndian.Uint32(data))
		case typ == nl.IFLA_VXLAN_LEARNING && len(data) == 1:
			v.learning = data[0] != 0
		case typ == nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX && len(data) == 1:
			v.zeroChecksum = data[0] != 0
		case typ == nl.IFLA_VXLAN_GBP:
			v.gbp = true
		case typ == nl.IFLA_VXLAN_GROUP || typ == nl.IFLA_VXLAN_GROUP6:
			v.fixed = true
		case typ == nl.IFLA_VXLAN_FLOWBASED && len(data) == 1:
			v.external = data[0] != 0
		}
	}
	return v
}

// same tells whether v and o are one link to the kernel.
func (v vxlanInfo) same(o VXLAN) bool {
	return v.vni == o.VNI && v.port == o.Port && v.over6 == o.Local.Is6()
}

// link is l, of which v was read, as it should be to be as it is; without the name of the underlay.
func (v vxlanInfo) link(l link) VXLAN {
	as := VXLAN{Name: l.name, VNI: v.vni, Port: v.port, Local: v.local, MAC: l.mac, MTU: l.mtu, GBP: v.gbp, Learning: v.learning, ARP: l.arp,
		ZeroChecksum: v.zeroChecksum}
	if v.over6 && !as.Local.IsValid() {
		as.Local = netip.IPv6Unspecified()
	}
	return as
}

func (v vxlanInfo) own(l link) Link {
	name := fmt.Sprintf("overlay.%d", v.vni)
	aside := fmt.Sprintf("overlay.p%d", v.port)
	if v.over6 {
		name, aside = fmt.Sprintf("overlay6.%d", v.vni), fmt.Sprintf("overlay6.p%d", v.port)
	}
	if !v.adoptable() || l.name != name && l.name != aside {
		return nil
	}
	return v.link(l)
}

func (v vxlanInfo) adoptable() bool { return !v.fixed && !v.external }

// External is what a vxlan link has that takes its tunnels from elsewhere, packet by packet.
const External = "external metadata"

func (v vxlanInfo) existing(l link) Existing {
	e := Existing{Link: v.link(l)}
	switch {
	case v.external:
		e.Foreign = External
	case v.fixed:
		e.Foreign = "a group or remote"
	case l.ports:
		e.Foreign = "a master"
	}
	return e
}

func (v VXLAN) made(l link) bool {
	have, ok := l.info.(vxlanInfo)
	return ok && have.same(v) && have.adoptable()
}

func (v VXLAN) like(l link) bool {
	have, ok := l.info.(vxlanInfo)
	// A link that is bound to a link below stays so: the kernel unbinds none.
	return ok && v.made(l) && !l.ports && have.gbp == v.GBP && (have.zeroChecksum || !v.ZeroChecksum) && (v.Underlay != "" || have.underlay == 0)
}

func (v VXLAN) is(l link, underlay int32) bool {
	have, ok := l.info.(vxlanInfo)
	if !ok || !have.adoptable() || l.ports || !l.up || have.underlay != underlay {
		return false
	}
	as := have.link(l)
	as.Underlay, as.ZeroChecksum = v.Underlay, as.ZeroChecksum && v.ZeroChecksum
	return as == v
}

func (v VXLAN) create(b *rtnl.Batch, underlay int32) {
	h := v.flags()
	if v.Local.Is6() {
		h.Flags, h.Change = h.Flags&^unix.IFF_UP, h.Change&^unix.IFF_UP
	}
	b.Begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, h)
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
			if v.ZeroChecksum {
				b.AttrU8(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, 1)
			}
			v.changeable(b, underlay)
		})
	})
	b.End()
	if !v.Local.Is6() {
		return
	}
	// Up only when it takes no address of its own: the kernel reads that in no request that makes a link.
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{})
	b.AttrString(unix.IFLA_IFNAME, v.Name)
	b.Nest(unix.IFLA_AF_SPEC, func() {
		b.Nest(unix.AF_INET6, func() { b.AttrU8(inet6AddrGenMode, addrGenModeNone) })
	})
	b.End()
	b.Begin(unix.RTM_NEWLINK, 0, v.flags())
	b.AttrString(unix.IFLA_IFNAME, v.Name)
	b.End()
}

// flags are those of the link when it is as it should be.
func (v VXLAN) flags() unix.IfInfomsg {
	h := unix.IfInfomsg{Flags: unix.IFF_UP, Change: unix.IFF_UP | unix.IFF_NOARP}
	if !v.ARP {
		h.Flags |= unix.IFF_NOARP
	}
	return h
}

// change adds two requests because the kernel takes no MTU in the one that changes the vxlan (vxlan_nl2conf in
// drivers/net/vxlan/vxlan_core.c).
func (v VXLAN) change(b *rtnl.Batch, l link, underlay int32) {
	h := v.flags()
	h.Index = l.index
	b.Begin(unix.RTM_NEWLINK, 0, h)
	if l.mac != v.MAC {
		b.Attr(unix.IFLA_ADDRESS, v.MAC[:])
	}
	if l.mtu != v.MTU {
		b.AttrU32(unix.IFLA_MTU, uint32(v.MTU))
	}
	b.End()
	if have := l.info.(vxlanInfo); have.local == v.Local && have.learning == v.Learning && have.underlay == underlay {
		return
	}
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{Index: l.index})
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
