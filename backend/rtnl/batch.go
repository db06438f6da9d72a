package rtnl

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// BatchSize is how many requests are sent at once; more gains nothing.
const BatchSize = 300

// Batch is a number of requests, one after the other in one buffer, which is used again and again.
type Batch struct {
	buf   []byte
	start int // of the message in work
	n     int
}

// Reset empties the batch.
func (b *Batch) Reset() { b.buf, b.n = b.buf[:0], 0 }

// Begin starts a request with the header that belongs to its type: a fixed-size struct of package unix.
func (b *Batch) Begin(typ, flags uint16, header any) {
	b.start = len(b.buf)
	b.n++
	b.u32(0)
	b.u16(typ)
	b.u16(flags | unix.NLM_F_REQUEST)
	b.u32(0)
	b.u32(0)
	b.buf, _ = binary.Append(b.buf, binary.NativeEndian, header)
}

// nfgenmsg is the header of every request to NETLINK_NETFILTER.
type nfgenmsg struct {
	Family, Version uint8
	Res             [2]uint8 // big endian
}

var subsystem = [2]uint8{0, unix.NFNL_SUBSYS_NFTABLES} // whose transaction it is

// Transaction starts one of nftables: what follows is for Conn.Commit.
func (b *Batch) Transaction() {
	b.Reset()
	b.Begin(unix.NFNL_MSG_BATCH_BEGIN, 0, nfgenmsg{Res: subsystem})
	b.End()
}

// TransactionAt is Transaction, but the kernel refuses it (unix.ERESTART) if anything of nftables has changed since it was of a
// generation (NFTA_GEN_ID).
func (b *Batch) TransactionAt(generation uint32) {
	b.Reset()
	b.Begin(unix.NFNL_MSG_BATCH_BEGIN, 0, nfgenmsg{Res: subsystem})
	b.Attr(unix.NFNL_BATCH_GENID, binary.BigEndian.AppendUint32(nil, generation))
	b.End()
}

// BeginNft starts a request of nftables, about a table of the family.
func (b *Batch) BeginNft(msg, flags uint16, family uint8) {
	b.Begin(unix.NFNL_SUBSYS_NFTABLES<<8|msg, flags, nfgenmsg{Family: family})
}

// Echo starts and ends a request with the body of a message that the kernel sent: as a deletion it removes exactly
// what the message told of, the way ip flush works.
func (b *Batch) Echo(typ uint16, body []byte) {
	b.Begin(typ, 0, body)
	b.End()
}

// End ends the request that Begin started.
func (b *Batch) End() {
	binary.NativeEndian.PutUint32(b.buf[b.start:], uint32(len(b.buf)-b.start))
	b.pad()
}

// Bytes are the requests as they are sent. The next Reset makes them invalid.
func (b *Batch) Bytes() []byte { return b.buf }

// seal numbers the requests from seq on and sets flags on one.
func (b *Batch) seal(seq uint32, on int, flags uint16) {
	for at, i := 0, 0; i < b.n; i++ {
		m := b.buf[at:]
		binary.NativeEndian.PutUint32(m[8:], seq+uint32(i))
		if i == on {
			binary.NativeEndian.PutUint16(m[6:], binary.NativeEndian.Uint16(m[6:])|flags)
		}
		at += Align(int(binary.NativeEndian.Uint32(m)))
	}
}

// Attr adds an attribute to the request.
func (b *Batch) Attr(typ uint16, data []byte) {
	b.u16(uint16(unix.SizeofRtAttr + len(data)))
	b.u16(typ)
	b.buf = append(b.buf, data...)
	b.pad()
}

// Raw adds attributes that are encoded already.
func (b *Batch) Raw(attrs []byte) { b.buf = append(b.buf, attrs...) }

// AttrU8 adds an attribute of one byte.
func (b *Batch) AttrU8(typ uint16, v uint8) { b.Attr(typ, []byte{v}) }

// AttrU32 adds an attribute of four bytes in host byte order.
func (b *Batch) AttrU32(typ uint16, v uint32) {
	b.u16(unix.SizeofRtAttr + 4)
	b.u16(typ)
	b.u32(v)
}

// AttrString adds a zero-terminated string.
func (b *Batch) AttrString(typ uint16, s string) {
	b.u16(uint16(unix.SizeofRtAttr + len(s) + 1))
	b.u16(typ)
	b.buf = append(append(b.buf, s...), 0)
	b.pad()
}

// AttrAddr adds an address in its 4 or 16 bytes.
func (b *Batch) AttrAddr(typ uint16, a netip.Addr) {
	if a.Is4() {
		v := a.As4()
		b.Attr(typ, v[:])
		return
	}
	v := a.As16()
	b.Attr(typ, v[:])
}

// Nest adds an attribute that holds what f adds.
func (b *Batch) Nest(typ uint16, f func()) {
	at := b.beginNest(typ)
	f()
	b.endNest(at)
}

func (b *Batch) beginNest(typ uint16) (at int) {
	at = len(b.buf)
	b.u16(0)
	b.u16(typ | unix.NLA_F_NESTED)
	return at
}

func (b *Batch) endNest(at int) {
	binary.NativeEndian.PutUint16(b.buf[at:], uint16(len(b.buf)-at))
}

func (b *Batch) u16(v uint16) { b.buf = binary.NativeEndian.AppendUint16(b.buf, v) }
func (b *Batch) u32(v uint32) { b.buf = binary.NativeEndian.AppendUint32(b.buf, v) }

func (b *Batch) pad() {
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}
