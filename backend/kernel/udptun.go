package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// UDPTun is a link for flannel's udp that a process serves (see UserSpace): each packet that is sent into it goes to the peer of
// its subnet, as the payload of a datagram, and nothing else. Keyed by Name.
type UDPTun struct {
	Name  string
	Local netip.Addr // source of the outer packets; IPv4
	Port  uint16     // UDP, of all hosts
	MTU   int
}

// Key implements Object.
func (u UDPTun) Key() Key { return linkKey(u.Name) }

// Kind implements Object.
func (UDPTun) Kind() Kind { return KindLink }

func (u UDPTun) String() string {
	return fmt.Sprintf("overlayd-tun: udp link %s local %s port %d mtu %d", u.Name, u.Local, u.Port, u.MTU)
}

func (u UDPTun) name() string { return u.Name }
func (UDPTun) below() string  { return "" }
func (UDPTun) inner6() bool   { return false }

// aliasUDP begins the alias of a link for flannel's udp.
const aliasUDP = "overlayd-tun udp "

// Alias is the alias of the link, which tells what netlink does not.
func (u UDPTun) Alias() string { return fmt.Sprintf("%s%s:%d", aliasUDP, u.Local, u.Port) }

// udpInfo is what the alias says of a link for flannel's udp.
type udpInfo struct{ at netip.AddrPort }

// decodeAlias is what a TUN link says of itself; nil: it is none for flannel's udp.
func decodeAlias(alias string) linkInfo {
	text, ok := strings.CutPrefix(alias, aliasUDP)
	at, err := netip.ParseAddrPort(text)
	if !ok || err != nil {
		return nil
	}
	return udpInfo{at}
}

func (i udpInfo) link(l link) UDPTun {
	return UDPTun{Name: l.name, Local: i.at.Addr(), Port: i.at.Port(), MTU: l.mtu}
}

func (i udpInfo) own(l link) Link {
	if !isNamed(l.name, UDPName) {
		return nil
	}
	return i.link(l)
}

func (udpInfo) adoptable() bool { return true }

func (i udpInfo) existing(l link) Existing {
	e := Existing{Link: i.link(l), UserSpace: true}
	if l.ports {
		e.Foreign = "a master"
	}
	return e
}

func (UDPTun) made(l link) bool {
	_, ok := l.info.(udpInfo)
	return ok
}

func (u UDPTun) like(l link) bool { return u.made(l) && !l.ports }

func (u UDPTun) is(l link, _ int32) bool {
	i, ok := l.info.(udpInfo)
	return ok && l.up && !l.ports && i.link(l) == u
}

// create and change are the process's: see put.
func (UDPTun) create(*rtnl.Batch, int32)       {}
func (UDPTun) change(*rtnl.Batch, link, int32) {}

// put implements handmade.
func (u UDPTun) put(r *Reconciler) (changed bool, err error) {
	have, err := linkByName(r.conn, &r.batch, u.Name)
	switch {
	case err == nil && u.is(have, 0):
		r.links.set(have)
		return false, nil
	case err == nil && !u.like(have):
		return false, fmt.Errorf("a link %s exists that is not overlayd's: remove or rename it", u.Name)
	case err != nil && !errors.Is(err, unix.ENODEV):
		return false, err
	case r.userSpace == nil:
		return false, errNoUserSpace
	}
	if err := r.userSpace.UDP(u); err != nil {
		return false, err
	}
	return true, r.checkLink(u, 0)
}
