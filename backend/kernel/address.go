package kernel

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Address is an address on one of our links, with no broadcast address. Keyed by everything.
type Address struct {
	Link   string
	Prefix netip.Prefix // the address and its prefix length
}

// Key implements Object.
func (a Address) Key() Key { return Key{name: a.Link, prefix: a.Prefix} }

// Kind implements Object.
func (Address) Kind() Kind { return KindAddress }

func (a Address) String() string {
	s := "ip address replace " + a.Prefix.String() + " dev " + a.Link
	if a.Prefix.Addr().Is6() {
		s += " nodad"
	}
	return s
}

func (a Address) link() string { return a.Link }

func (a Address) encode(b *rtnl.Batch, op op, index int32) {
	ip := a.Prefix.Addr()
	h := unix.IfAddrmsg{Family: rtnl.FamilyOf(ip), Prefixlen: uint8(a.Prefix.Bits()), Index: uint32(index)}
	if ip.Is6() {
		h.Flags = unix.IFA_F_NODAD // or it is tentative for a second, on a link where nobody could answer
	}
	b.Begin(op.message(unix.RTM_NEWADDR), op.flags(), h)
	b.AttrAddr(unix.IFA_LOCAL, ip)
	b.AttrAddr(unix.IFA_ADDRESS, ip)
	b.End()
}

// decodeAddress reads an RTM_NEWADDR or RTM_DELADDR. Ours is every address on our links but the link-local one that
// the kernel gives an IPv6 link.
func decodeAddress(body []byte, names map[int32]string) found {
	var h unix.IfAddrmsg
	attrs := rtnl.Header(body, &h)
	var local, address netip.Addr
	for typ, data := range rtnl.Attributes(attrs) {
		switch typ {
		case unix.IFA_LOCAL:
			local = rtnl.Addr(data)
		case unix.IFA_ADDRESS:
			address = rtnl.Addr(data)
		}
	}
	if !local.IsValid() { // IPv6 says it only of point-to-point links
		local = address
	}
	if !local.IsValid() {
		return found{}
	}
	a := Address{Link: names[int32(h.Index)], Prefix: netip.PrefixFrom(local, int(h.Prefixlen))}
	if local.Is6() && local.IsLinkLocalUnicast() {
		return found{object: a}
	}
	return found{object: a, mark: ours}
}

func dumpAddresses(b *rtnl.Batch, index int32) {
	b.Begin(unix.RTM_GETADDR, 0, unix.IfAddrmsg{Index: uint32(index)})
	b.End()
}
