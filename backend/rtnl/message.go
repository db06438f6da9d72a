// Package rtnl speaks rtnetlink with little cost: requests by the hundred in one buffer, answers matched to them, dumps that
// can be stopped, and notifications.
package rtnl

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// SkipStats, as IFLA_EXT_MASK, asks for links without counters: RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const SkipStats = 1 << 3

// kernelError is what the kernel answered, with its explanation if it gave one.
type kernelError struct {
	errno unix.Errno
	text  string
}

func (e kernelError) Error() string {
	if e.text == "" {
		return e.errno.Error()
	}
	return fmt.Sprintf("%v (%s)", e.errno, e.text)
}

func (e kernelError) Unwrap() error { return e.errno }

// answer is the error that an NLMSG_ERROR or NLMSG_DONE carries; nil if it tells of success.
func answer(h unix.NlMsghdr, body []byte) error {
	if len(body) < 4 {
		return nil
	}
	errno := -int32(binary.NativeEndian.Uint32(body))
	if errno == 0 {
		return nil
	}
	e := kernelError{errno: unix.Errno(errno)}
	at := 4
	if h.Type == unix.NLMSG_ERROR {
		at += unix.NLMSG_HDRLEN
	}
	if h.Flags&unix.NLM_F_ACK_TLVS != 0 && len(body) > at {
		for typ, data := range Attributes(body[at:]) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				e.text = unix.ByteSliceToString(data)
			}
		}
	}
	return e
}

// Messages walks over the messages of a datagram.
func Messages(b []byte) iter.Seq2[unix.NlMsghdr, []byte] {
	return func(yield func(unix.NlMsghdr, []byte) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			h := unix.NlMsghdr{
				Len:   binary.NativeEndian.Uint32(b),
				Type:  binary.NativeEndian.Uint16(b[4:]),
				Flags: binary.NativeEndian.Uint16(b[6:]),
				Seq:   binary.NativeEndian.Uint32(b[8:]),
				Pid:   binary.NativeEndian.Uint32(b[12:]),
			}
			if h.Len < unix.NLMSG_HDRLEN || int(h.Len) > len(b) || !yield(h, b[unix.NLMSG_HDRLEN:h.Len]) {
				return
			}
			b = b[min(Align(int(h.Len)), len(b)):]
		}
	}
}

// Attributes walks over the attributes in b.
func Attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.SizeofRtAttr || size > len(b) || !yield(typ, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(Align(size), len(b)):]
		}
	}
}

// Align rounds up to the four bytes that netlink aligns everything to.
func Align(n int) int { return (n + 3) &^ 3 }

// Header reads the fixed-size struct at the start of body into h and returns what follows it; nil if there is less.
func Header(body []byte, h any) []byte {
	n, err := binary.Decode(body, binary.NativeEndian, h)
	if err != nil {
		return nil
	}
	return body[min(Align(n), len(body)):]
}

// Addr is the address in an attribute's data; invalid for an odd length.
func Addr(data []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(data)
	return a
}

// FamilyOf is the address family as the kernel numbers it.
func FamilyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// NativeU32 is a number as the CPU has it.
func NativeU32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
