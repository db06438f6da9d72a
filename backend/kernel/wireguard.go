package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// The names of our wireguard links. The second is of IPv6, where each family has a link.
const (
	WireGuardName  = "overlay-wg"
	WireGuardName6 = "overlay6-wg"
)

// WireGuard is a wireguard link: of the kernel or, where that has none, of a process (see UserSpace). Keyed by Name. What
// has an address on it, or a route, may be of both families.
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
	return fmt.Sprintf("ip link add %[1]s mtu %[2]d type wireguard && wg set %[1]s listen-port %[3]d%[4]s private-key STATE/wireguard.key && ip link set %[1]s up",
		w.Name, w.MTU, w.Port, mark)
}

func (w WireGuard) name() string { return w.Name }
func (WireGuard) below() string  { return "" }
func (WireGuard) inner6() bool   { return true }

// wgInfo is what is known of a link that is wireguard's, or a process's.
type wgInfo struct {
	device bool // the rest is known
	secret Secret
	port   uint16
	mark   uint32
}

func decodeWireGuard([]byte) linkInfo { return wgInfo{} }

func (i wgInfo) link(l link) WireGuard {
	return WireGuard{Name: l.name, Private: i.secret, Port: i.port, Mark: i.mark, MTU: l.mtu}
}

func (i wgInfo) own(l link) Link {
	if l.name != WireGuardName && l.name != WireGuardName6 {
		return nil
	}
	return i.link(l)
}

func (i wgInfo) adoptable() bool { return i.device }

func (i wgInfo) existing(l link) Existing { return Existing{Link: i.link(l)} }

func (w WireGuard) made(l link) bool {
	i, ok := l.info.(wgInfo)
	return ok && i.device
}

func (w WireGuard) like(l link) bool { return w.made(l) && !l.ports }

func (w WireGuard) is(l link, _ int32) bool {
	i, ok := l.info.(wgInfo)
	return ok && i.device && l.up && !l.ports && i.link(l) == w
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
