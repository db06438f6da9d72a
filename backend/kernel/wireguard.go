package kernel

import (
	"fmt"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// The names of our wireguard links. The second is of IPv6, where each family has a link.
const (
	WireGuardName         = "overlay-wg"
	WireGuardName6        = "overlay6-wg"
	FlannelWireGuardName  = "flannel-wg"
	FlannelWireGuardName6 = "flannel-wg-v6"
)

// WireGuard is a wireguard link: of the kernel or, where that has none, of a process (see UserSpace). Keyed by Name. It
// carries both families.
type WireGuard struct {
	Name    string
	Private Secret
	Port    uint16 // UDP
	Mark    uint32 // of the outer packets (SO_MARK); 0: none
	MTU     int
}

// Key implements Object.
func (w WireGuard) Key() Key { return linkKey(w.Name) }

// Kind implements Object.
func (WireGuard) Kind() Kind { return KindLink }

func (w WireGuard) String() string {
	mark := ""
	if w.Mark != 0 {
		mark = fmt.Sprintf(" fwmark %#x", w.Mark)
	}
	return fmt.Sprintf("ip link add %[1]s mtu %[2]d type wireguard && "+
		"wg set %[1]s listen-port %[3]d%[4]s private-key STATE/wireguard.key && ip link set %[1]s up", w.Name, w.MTU, w.Port, mark)
}

func (w WireGuard) name() string { return w.Name }
func (WireGuard) below() string  { return "" }
func (WireGuard) inner6() bool   { return true } // if it has an address of it: see prepare

// wgInfo is what is known of a link that is wireguard's. Netlink says nothing of it but its kind: learn finds the rest.
type wgInfo struct {
	user   bool // it is of a process, perhaps not of wireguard's
	known  bool // wireguard has told the rest
	secret Secret
	public WGKey
	port   uint16
	mark   uint32
}

func decodeWireGuard([]byte) linkInfo { return wgInfo{} }
func decodeTUN([]byte) linkInfo       { return wgInfo{user: true} }

// wireguards tells whether the link is wireguard's: one of a process tells so itself.
func (i wgInfo) wireguards() bool { return i.known || !i.user }

// learned is i with what wireguard says.
func (i wgInfo) learned(d *wgtypes.Device) wgInfo {
	i.known = true
	i.secret, i.public = Secret(d.PrivateKey), WGKey(d.PublicKey)
	i.port, i.mark = uint16(d.ListenPort), uint32(d.FirewallMark)
	return i
}

func (i wgInfo) link(l link) WireGuard {
	return WireGuard{Name: l.name, Private: i.secret, Port: i.port, Mark: i.mark, MTU: l.mtu}
}

func (i wgInfo) own(l link) Link {
	if !isNamed(l.name, WireGuardName, WireGuardName6) || !i.wireguards() {
		return nil
	}
	return i.link(l)
}

func (i wgInfo) adoptable() bool { return i.wireguards() }

func (i wgInfo) existing(l link) Existing {
	e := Existing{Link: i.link(l), UserSpace: i.user}
	if l.ports {
		e.Foreign = "a master"
	}
	return e
}

// described is what is there, if it is wireguard's.
func (i wgInfo) described(ns netns.NsHandle, l link) (e Existing, ok bool) {
	d, err := readDevice(ns, l.name)
	switch {
	case err == nil:
		i = i.learned(d)
		e = i.existing(l)
		for _, p := range d.Peers {
			o := peerOf(l.name, &p)
			o.Endpoints[0] = endpointOf(&p)
			e.Peers = append(e.Peers, o)
		}
	case i.user:
		return e, false
	default:
		e = i.existing(l)
		e.Foreign = fmt.Sprintf("what cannot be read: %v", err)
	}
	return e, true
}

func (w WireGuard) made(l link) bool {
	i, ok := l.info.(wgInfo)
	return ok && i.wireguards()
}

func (w WireGuard) like(l link) bool { return w.made(l) && !l.ports }

func (w WireGuard) is(l link, _ int32) bool {
	i, ok := l.info.(wgInfo)
	if !ok || !i.known || !l.up || l.ports {
		return false
	}
	as := i.link(l)
	as.Private, w.Private = as.Private.clamped(), w.Private.clamped()
	return as == w
}

// create makes the link, down: it gets its port before it comes up, or it would take another first.
func (w WireGuard) create(b *rtnl.Batch, _ int32) {
	b.Begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.IfInfomsg{})
	b.AttrString(unix.IFLA_IFNAME, w.Name)
	b.AttrU32(unix.IFLA_MTU, uint32(w.MTU))
	b.Nest(unix.IFLA_LINKINFO, func() { b.AttrString(unix.IFLA_INFO_KIND, "wireguard") })
	b.End()
}

// change brings it up.
func (w WireGuard) change(b *rtnl.Batch, l link, _ int32) {
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{Index: l.index, Flags: unix.IFF_UP, Change: unix.IFF_UP})
	if l.mtu != w.MTU {
		b.AttrU32(unix.IFLA_MTU, uint32(w.MTU))
	}
	b.End()
}

func encodeLinkDown(b *rtnl.Batch, index int32) {
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{Index: index, Change: unix.IFF_UP})
	b.End()
}
