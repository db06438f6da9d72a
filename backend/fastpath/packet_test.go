package fastpath

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/backend/kernel"
)

// packet is one of a test. What is zero is as usual.
type packet struct {
	from, to         kernel.MAC
	src, dst         netip.Addr
	proto            byte // IPPROTO_*; TCP
	ttl, tos         byte
	sport, dport     uint16
	flags            byte   // of TCP; ACK
	fragment         uint16 // the IPv4 field
	options          []byte // IPv4's, or IPv6's extension headers, of which the first is a hop-by-hop one
	payload, trailer []byte
	length           int // what the IP header says is wrong by this
	id               uint16
	noChecksum       bool // of UDP
}

const (
	protoTCP  = 6
	protoUDP  = 17
	protoICMP = 1
	flagSYN   = 2
	flagACK   = 16
)

func (p packet) bytes() []byte {
	etherType := []byte{0x08, 0x00}
	if p.src.Is6() {
		etherType = []byte{0x86, 0xdd}
	}
	return append(append(append(append(p.to[:6:6], p.from[:]...), etherType...), p.ip()...), p.trailer...)
}

func (p packet) ip() []byte {
	if p.proto == 0 {
		p.proto = protoTCP
	}
	if p.ttl == 0 {
		p.ttl = 64
	}
	l4 := p.l4()
	if p.src.Is4() {
		size := 20 + len(p.options)
		b := []byte{0x40 | byte(size/4), p.tos}
		b = binary.BigEndian.AppendUint16(b, uint16(size+len(l4)+p.length))
		b = binary.BigEndian.AppendUint16(b, p.id)
		b = binary.BigEndian.AppendUint16(b, p.fragment)
		b = append(b, p.ttl, p.proto, 0, 0)
		b = append(append(append(b, p.src.AsSlice()...), p.dst.AsSlice()...), p.options...)
		binary.BigEndian.PutUint16(b[10:], ^sum(b))
		return append(b, l4...)
	}
	b := []byte{0x60 | p.tos>>4, p.tos << 4, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.options)+len(l4)+p.length))
	next := p.proto
	if p.options != nil {
		next = 0
	}
	b = append(b, next, p.ttl)
	return append(append(append(append(b, p.src.AsSlice()...), p.dst.AsSlice()...), p.options...), l4...)
}

func (p packet) l4() []byte {
	b := binary.BigEndian.AppendUint16(nil, p.sport)
	b = binary.BigEndian.AppendUint16(b, p.dport)
	check := 6
	switch p.proto {
	case protoTCP:
		if p.flags == 0 {
			p.flags = flagACK
		}
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, p.flags, 1, 0, 0, 0, 0, 0)
		check = 16
	default:
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(p.payload)))
		b = append(b, 0, 0)
	}
	b = append(b, p.payload...)
	pseudo := append(p.src.AsSlice(), p.dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, p.proto)
	if !p.noChecksum {
		binary.BigEndian.PutUint16(b[check:], ^sum(append(pseudo, b...)))
	}
	return b
}

// sum is the Internet's (RFC 1071).
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// in is p in a packet of vxlan.
func (p packet) in(outer packet, vni uint32) packet {
	outer.proto, outer.noChecksum = protoUDP, true
	outer.payload = binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8)
	outer.payload = append(outer.payload, p.bytes()...)
	return outer
}
