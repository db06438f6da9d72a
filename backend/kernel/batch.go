package kernel

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// batchSize is how many requests are sent at once; more gains nothing.
const batchSize = 300

// batch is a number of requests, one after the other in one buffer, which is used again and again.
type batch struct {
	buf   []byte
	start int // of the message in work
	n     int
}

func (b *batch) reset() { b.buf, b.n = b.buf[:0], 0 }

// begin starts a request with the header that belongs to its type: a fixed-size struct of package unix.
func (b *batch) begin(typ, flags uint16, header any) {
	b.start = len(b.buf)
	b.n++
	b.u32(0)
	b.u16(typ)
	b.u16(flags | unix.NLM_F_REQUEST)
	b.u32(0)
	b.u32(0)
	b.buf, _ = binary.Append(b.buf, binary.NativeEndian, header)
}

// echo starts and ends a request with the body of a message that the kernel sent: as a deletion it removes exactly
// what the message told of, the way ip flush works.
func (b *batch) echo(typ uint16, body []byte) {
	b.begin(typ, 0, body)
	b.end()
}

func (b *batch) end() {
	binary.NativeEndian.PutUint32(b.buf[b.start:], uint32(len(b.buf)-b.start))
	b.pad()
}

// seal numbers the requests from seq on and sets flags on the last.
func (b *batch) seal(seq uint32, flags uint16) {
	for at, i := 0, 0; i < b.n; i++ {
		m := b.buf[at:]
		binary.NativeEndian.PutUint32(m[8:], seq+uint32(i))
		if i == b.n-1 {
			binary.NativeEndian.PutUint16(m[6:], binary.NativeEndian.Uint16(m[6:])|flags)
		}
		at += align(int(binary.NativeEndian.Uint32(m)))
	}
}

func (b *batch) attr(typ uint16, data []byte) {
	b.u16(uint16(unix.SizeofRtAttr + len(data)))
	b.u16(typ)
	b.buf = append(b.buf, data...)
	b.pad()
}

func (b *batch) attrU8(typ uint16, v uint8) { b.attr(typ, []byte{v}) }

func (b *batch) attrU32(typ uint16, v uint32) {
	b.u16(unix.SizeofRtAttr + 4)
	b.u16(typ)
	b.u32(v)
}

// attrString adds a zero-terminated string.
func (b *batch) attrString(typ uint16, s string) {
	b.u16(uint16(unix.SizeofRtAttr + len(s) + 1))
	b.u16(typ)
	b.buf = append(append(b.buf, s...), 0)
	b.pad()
}

// attrAddr adds an address in its 4 or 16 bytes.
func (b *batch) attrAddr(typ uint16, a netip.Addr) {
	if a.Is4() {
		v := a.As4()
		b.attr(typ, v[:])
		return
	}
	v := a.As16()
	b.attr(typ, v[:])
}

// nest adds an attribute that holds what f adds.
func (b *batch) nest(typ uint16, f func()) {
	at := len(b.buf)
	b.u16(0)
	b.u16(typ | unix.NLA_F_NESTED)
	f()
	binary.NativeEndian.PutUint16(b.buf[at:], uint16(len(b.buf)-at))
}

func (b *batch) u16(v uint16) { b.buf = binary.NativeEndian.AppendUint16(b.buf, v) }
func (b *batch) u32(v uint32) { b.buf = binary.NativeEndian.AppendUint32(b.buf, v) }

func (b *batch) pad() {
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}

// header reads the fixed-size struct at the start of body into h and returns what follows it; nil if there is less.
func header(body []byte, h any) []byte {
	n, err := binary.Decode(body, binary.NativeEndian, h)
	if err != nil {
		return nil
	}
	return body[min(align(n), len(body)):]
}

// addr is the address in an attribute's data; invalid for an odd length.
func addr(data []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(data)
	return a
}

// familyOf is the address family as the kernel numbers it.
func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
