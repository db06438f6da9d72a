package fastpath

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/overlayd/overlayd/backend/kernel"
)

// packets makes random ones: valid ones, and such with something wrong. It repairs IPv4 headers' checksums, which the fast
// path does not look at: the receiver drops what the slow way's first host drops.
type packets struct {
	*rand.Rand
	family             string
	from, to           kernel.MAC
	src, dst           netip.Addr
	sources, dests     []netip.Addr
	small              int // packets of about this size are at the MTU
	wire               bool
	outerFrom, outerTo kernel.MAC
	outer              [2]netip.Addr
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// often picks the first one mostly.
func often[T any](r *rand.Rand, usual T, of ...T) T {
	if len(of) == 0 || r.IntN(6) > 0 {
		return usual
	}
	return pick(r, of...)
}

func (g *packets) inner() packet {
	p := packet{
		from: often(g.Rand, g.from, peerHost), to: often(g.Rand, g.to, peerHost, kernel.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, kernel.MAC{1, 0, 0x5e, 0, 0, 1}),
		src: often(g.Rand, g.src, g.sources...), dst: often(g.Rand, g.dst, g.dests...),
		proto: pick[byte](g.Rand, protoTCP, protoTCP, protoTCP, protoUDP, protoUDP, protoUDP, protoICMP, 58, 47),
		ttl:   often[byte](g.Rand, 64, 0, 1, 2, 3, 255), tos: often(g.Rand, 0, byte(g.IntN(256))),
		sport: pick[uint16](g.Rand, 80, 4000, 8472, 0), dport: pick[uint16](g.Rand, 80, 4000, 8472, 0),
		flags: often(g.Rand, flagACK, byte(g.IntN(256))), id: uint16(g.Uint32()),
		fragment:   often[uint16](g.Rand, pick[uint16](g.Rand, 0x4000, 0), 0x2000, 0x8000, 0xc000, 0x2001, 5, 0x6000, 0x1fff),
		noChecksum: g.IntN(5) == 0,
		length:     often(g.Rand, 0, 1, -1, -8, 20, -20, -28, 4, 700),
	}
	if p.ttl == 0 {
		p.ttl = 1
	}
	if p.dst == addr("10.99.0.1") { // or it gets a random port for its own one, which a connection to where it leads may have
		p.sport |= 0x8000
	}
	if g.IntN(8) == 0 {
		p.options = pick(g.Rand, []byte{1, 1, 1, 1}, []byte{7, 7, 4, 0, 0, 0, 0, 0}, []byte{0x83, 7, 4, 192, 0, 2, 2, 0}, []byte{0, 0, 0, 0}, []byte{0x94, 4, 0, 0})
		if g.src.Is6() {
			p.options = []byte{p.proto, 0, 1, 4, 0, 0, 0, 0}
		}
	}
	switch g.IntN(4) {
	case 0:
		p.payload = make([]byte, max(0, g.small-60+g.IntN(50)))
	case 1:
		p.payload = make([]byte, g.IntN(g.small))
	case 2:
		p.payload = make([]byte, g.IntN(4))
	}
	for i := range p.payload {
		p.payload[i] = byte(g.Uint32())
	}
	p.trailer = make([]byte, often(g.Rand, 0, 1, 6, 20))
	return p
}

// next is a packet, as it leaves the container or stands on the wire.
func (g *packets) next() frame {
	p := g.inner()
	if !g.wire && g.IntN(8) == 0 {
		return g.large(p)
	}
	b := p.bytes()
	if g.wire {
		o := packet{
			from: g.outerFrom, to: often(g.Rand, g.outerTo, peerHost), src: often(g.Rand, g.outer[0], g.outer[1], g.sources[0]), dst: often(g.Rand, g.outer[1], g.outer[0]),
			sport: uint16(g.Uint32()), dport: often[uint16](g.Rand, 8472, 8473, 4789), tos: often(g.Rand, 0, byte(g.IntN(256))), ttl: often[byte](g.Rand, 64, 1, 255),
			fragment: often[uint16](g.Rand, 0, 0x4000, 0x2000, 7), id: uint16(g.Uint32()),
		}
		if g.IntN(12) == 0 && o.src.Is4() {
			o.options = []byte{1, 1, 1, 1}
		}
		inner := len(b)
		b = p.in(o, often[uint32](g.Rand, 1, 2, 0)).bytes()
		if vxlan := b[len(b)-inner-8:]; g.IntN(8) == 0 {
			vxlan[g.IntN(8)] ^= 1 << g.IntN(8)
		}
	}
	if g.IntN(3) == 0 {
		g.mutate(b)
	}
	if g.IntN(12) == 0 {
		b = b[:14+g.IntN(len(b)-14)]
	}
	repair(b, 14)
	return frame{data: b}
}

// mutate changes some byte of the headers, but in a way that no outer checksum of UDP comes to be, which the fast path does not look at.
func (g *packets) mutate(b []byte) {
	i := 12 + g.IntN(min(len(b), 150)-12)
	outer := 14 + 20 + 6
	if g.outer[0].Is6() {
		outer += 20
	}
	if g.wire && (i == outer || i == outer+1) {
		return
	}
	b[i] = pick(g.Rand, byte(g.Uint32()), b[i]^1<<g.IntN(8), 0, 0xff)
}

// repair makes the IPv4 headers' checksums right, the outer one's and the inner one's.
func repair(b []byte, at int) {
	if len(b) < at+20 {
		return
	}
	ip := b[at:]
	if b[at-2] == 8 && b[at-1] == 0 {
		l4 := int(ip[0]&15) * 4
		if l4 < 20 || l4 > len(ip) {
			return
		}
		clear(ip[10:12])
		binary.BigEndian.PutUint16(ip[10:], ^sum(ip[:l4]))
		if ip[9] == protoUDP {
			repair(b, at+l4+16+14)
		}
	} else if b[at-2] == 0x86 && b[at-1] == 0xdd {
		repair(b, at+40+16+14)
	}
}

// large is a packet that the card is to cut.
func (g *packets) large(p packet) frame {
	p.proto, p.options, p.trailer, p.length, p.fragment = pick[byte](g.Rand, protoTCP, protoTCP, protoUDP), nil, nil, 0, 0x4000
	p.flags &^= flagSYN | 4
	headers := len(packet{src: p.src, dst: p.dst, proto: p.proto}.ip())
	v := virtio{Flags: 1, GSOType: 5, GSOSize: uint16(g.small - headers), CsumStart: uint16(14 + headers - 8), CsumOffset: 6}
	if p.proto == protoTCP {
		v.GSOType, v.CsumStart, v.CsumOffset = 1, v.CsumStart-12, 16
		if p.src.Is6() {
			v.GSOType = 4
		}
	}
	v.GSOSize += often[uint16](g.Rand, 0, 1, 0xffff, 0xff00)
	p.payload = make([]byte, 2000+g.IntN(20000))
	b := p.bytes()
	l4 := b[v.CsumStart:]
	pseudo := append(p.src.AsSlice(), p.dst.AsSlice()...)
	pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(l4))), 0, 0, 0, p.proto)
	binary.BigEndian.PutUint16(l4[v.CsumOffset:], sum(pseudo))
	v.HdrLen = uint16(14 + headers)
	return frame{v, b}
}
