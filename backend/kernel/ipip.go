package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// The names of our ipip links, and of flannel's, which is taken over under its name.
const (
	IPIPName        = "overlay.ipip"
	UDPName         = "overlay.udp"
	FlannelIPIPName = "flannel.ipip"
)

// IPIP is an ipip link, for protocol 4 or, with a Port, for flannel's udp by FOU: where it sends to is the gateway of the route
// that leads into it. Keyed by Name. The kernel has one of a Local and an Underlay, whatever the Port.
type IPIP struct {
	Name       string
	Local      netip.Addr
	Underlay   string // name of the link that carries the outer packets; empty: any, as the routes say
	MTU        int
	Port       uint16 // UDP, of FOU: where it sends to, and where Local receives; 0: protocol 4
	Unfinished bool   // inner checksums may travel unfinished: the link's transmit offload stays on
}

// Key implements Object.
func (i IPIP) Key() Key { return linkKey(i.Name) }

// Kind implements Object.
func (IPIP) Kind() Kind { return KindLink }

func (i IPIP) String() string {
	s := fmt.Sprintf("ip link add %s up mtu %d type ipip local %s ttl inherit nopmtudisc", i.Name, i.MTU, i.Local)
	if i.Underlay != "" {
		s += " dev " + i.Underlay
	}
	if i.Port == 0 {
		return s
	}
	s = fmt.Sprintf("%s encap fou encap-sport auto encap-dport %d && ip fou add port %d ipproto 4 local %s", s, i.Port, i.Port, i.Local)
	if !i.Unfinished {
		s += fmt.Sprintf(" && ethtool -K %s tx off", i.Name)
	}
	return s
}

func (i IPIP) name() string  { return i.Name }
func (i IPIP) below() string { return i.Underlay }
func (IPIP) inner6() bool    { return false }

// ipipInfo is what the kernel says of an ipip link.
type ipipInfo struct {
	local      netip.Addr
	underlay   int32 // the index of the link below
	port       uint16
	ttl        bool // it has one of its own
	pmtudisc   bool // outer packets may never be fragmented
	remote     netip.Addr
	external   bool // it takes its tunnels from elsewhere, packet by packet
	otherEncap bool // neither none nor FOU as ours have it
}

func decodeIPIP(data []byte) linkInfo {
	var i ipipInfo
	var fou bool
	for typ, data := range rtnl.Attributes(data) {
		switch {
		case typ == nl.IFLA_IPTUN_LINK && len(data) == 4:
			i.underlay = int32(binary.NativeEndian.Uint32(data))
		case typ == nl.IFLA_IPTUN_LOCAL:
			i.local = rtnl.Addr(data)
		case typ == nl.IFLA_IPTUN_REMOTE:
			if i.remote = rtnl.Addr(data); i.remote.IsUnspecified() {
				i.remote = netip.Addr{}
			}
		case typ == nl.IFLA_IPTUN_TTL && len(data) == 1:
			i.ttl = data[0] != 0
		case typ == nl.IFLA_IPTUN_PMTUDISC && len(data) == 1:
			i.pmtudisc = data[0] != 0
		case typ == nl.IFLA_IPTUN_PROTO && len(data) == 1:
			i.otherEncap = i.otherEncap || data[0] != unix.IPPROTO_IPIP && data[0] != 0
		case typ == nl.IFLA_IPTUN_ENCAP_TYPE && len(data) == 2:
			encap := binary.NativeEndian.Uint16(data)
			fou = encap == netlink.FOU_ENCAP_DIRECT
			i.otherEncap = i.otherEncap || encap != 0 && !fou
		case typ == nl.IFLA_IPTUN_ENCAP_DPORT && len(data) == 2:
			i.port = binary.BigEndian.Uint16(data)
		case typ == nl.IFLA_IPTUN_COLLECT_METADATA:
			i.external = true
		}
	}
	if !fou {
		i.port = 0
	}
	return i
}

// link is l, of which i was read, as it should be to be as it is; without the name of the underlay.
func (i ipipInfo) link(l link) IPIP {
	return IPIP{Name: l.name, Local: i.local, MTU: l.mtu, Port: i.port, Unfinished: true}
}

func (i ipipInfo) own(l link) Link {
	if !isNamed(l.name, IPIPName, UDPName) || !i.adoptable() {
		return nil
	}
	return i.link(l)
}

// fixed says whether it has a remote, or no local address, as ours never have.
func (i ipipInfo) fixed() bool {
	return i.remote.IsValid() || !i.local.IsValid() || i.local.IsUnspecified()
}

func (i ipipInfo) adoptable() bool { return !i.fixed() && !i.external && !i.otherEncap }

func (i ipipInfo) existing(l link) Existing {
	e := Existing{Link: i.link(l), Below: i.underlay, Remote: i.remote}
	switch {
	case i.external:
		e.Foreign = External
	case i.fixed():
		e.Foreign = "a remote or no local address"
	case i.otherEncap:
		e.Foreign = "another encapsulation"
	}
	return e
}

func (IPIP) made(l link) bool {
	have, ok := l.info.(ipipInfo)
	return ok && have.adoptable()
}

func (i IPIP) like(l link) bool { return i.made(l) }

// is does not see the port of FOU that Local receives at, nor the link's offload: see finish.
func (i IPIP) is(l link, underlay int32) bool {
	have, ok := l.info.(ipipInfo)
	if !ok || !i.made(l) || !l.up || have.underlay != underlay || have.ttl || have.pmtudisc {
		return false
	}
	as := have.link(l)
	as.Underlay, as.Unfinished = i.Underlay, i.Unfinished
	return as == i
}

func (i IPIP) create(b *rtnl.Batch, underlay int32) {
	b.Begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.IfInfomsg{Flags: unix.IFF_UP, Change: unix.IFF_UP})
	b.AttrString(unix.IFLA_IFNAME, i.Name)
	i.describe(b, underlay)
}

func (i IPIP) change(b *rtnl.Batch, l link, underlay int32) {
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{Index: l.index, Flags: unix.IFF_UP, Change: unix.IFF_UP})
	i.describe(b, underlay)
}

// describe says all of it: what a request does not name becomes zero (ipip_netlink_parms in net/ipv4/ipip.c).
func (i IPIP) describe(b *rtnl.Batch, underlay int32) {
	b.AttrU32(unix.IFLA_MTU, uint32(i.MTU))
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.AttrString(unix.IFLA_INFO_KIND, "ipip")
		b.Nest(unix.IFLA_INFO_DATA, func() {
			b.AttrU32(nl.IFLA_IPTUN_LINK, uint32(underlay))
			b.AttrAddr(nl.IFLA_IPTUN_LOCAL, i.Local)
			b.AttrU8(nl.IFLA_IPTUN_TTL, 0)
			b.AttrU8(nl.IFLA_IPTUN_PMTUDISC, 0)
			encap := uint16(0)
			if i.Port != 0 {
				encap = netlink.FOU_ENCAP_DIRECT
			}
			b.Attr(nl.IFLA_IPTUN_ENCAP_TYPE, binary.NativeEndian.AppendUint16(nil, encap))
			// The source port is of the packet's flow: networks, and network cards, share out flows by it.
			b.Attr(nl.IFLA_IPTUN_ENCAP_SPORT, []byte{0, 0})
			b.Attr(nl.IFLA_IPTUN_ENCAP_DPORT, binary.BigEndian.AppendUint16(nil, i.Port))
		})
	})
	b.End()
}

// put implements handmade.
func (i IPIP) put(r *Reconciler) (changed bool, err error) {
	changed, err = r.putPlain(i)
	switch {
	case errors.Is(err, unix.EEXIST):
		err = i.explain(r, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		err = errNoIPIP(err)
	case errors.Is(err, unix.EINVAL) && i.Port != 0:
		err = errNoFOU(err)
	}
	if err == nil && i.Port != 0 {
		err = i.finish(r.ns)
	}
	return changed, err
}

// explain names the link that is in the way of this one.
func (i IPIP) explain(r *Reconciler, err error) error {
	all, failed := dumpLinks(r.conn, &r.batch)
	underlay, _ := r.below(i)
	for _, l := range all {
		if o, ok := l.info.(ipipInfo); ok && failed == nil && l.name != i.Name && !o.fixed() && o.local == i.Local && o.underlay == underlay.index {
			return fmt.Errorf("%s is an ipip link of %s too, and the kernel has one of an address: remove it", l.name, i.Local)
		}
	}
	return err
}

// Tunnel tells of a link that is flannel's ipip or udp, whoever serves it, the name, and the UDP port; "" of any other object.
func Tunnel(o Object) (name string, port uint16) {
	switch o := o.(type) {
	case IPIP:
		return o.Name, o.Port
	case UDPTun:
		return o.Name, o.Port
	}
	return "", 0
}

// isIPIP says whether a link is one of ours for protocol 4.
func (r *Reconciler) isIPIP(name string) bool {
	e := r.claims.trackers[KindLink].wanted(linkKey(name))
	if e == nil {
		return false
	}
	i, ok := e.want.(IPIP)
	return ok && i.Port == 0
}
