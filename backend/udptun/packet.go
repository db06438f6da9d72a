package udptun

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// An IPv4 packet's fields by their places (RFC 791), of TCP (RFC 9293) and of UDP (RFC 768).
const (
	ipHeaderLen  = 20
	ipTOS        = 1
	ipLength     = 2
	ipID         = 4
	ipFragment   = 6
	ipTTL        = 8
	ipProtocol   = 9
	ipChecksum   = 10
	ipSource     = 12
	ipDest       = 16
	tcpHeaderLen = 20
	tcpSeq       = 4
	tcpAck       = 8
	tcpOffset    = 12
	tcpFlags     = 13
	tcpWindow    = 14
	tcpChecksum  = 16
	tcpFIN       = 0x01
	tcpPSH       = 0x08
	tcpACK       = 0x10
	tcpCWR       = 0x80
	udpHeaderLen = 8
	udpLength    = 4
	udpChecksum  = 6
	protoICMP    = 1
	protoTCP     = 6
	protoUDP     = 17
	dontFragment = 0x4000
	maxPacketLen = 65535
)

// headerLen is the length of p's IPv4 header; 0 if p is no IPv4 packet that is whole.
func headerLen(p []byte) int {
	if len(p) < ipHeaderLen || p[0]>>4 != 4 {
		return 0
	}
	n, length := int(p[0]&0xf)*4, int(binary.BigEndian.Uint16(p[ipLength:]))
	if n < ipHeaderLen || n > length || length > len(p) {
		return 0
	}
	return n
}

// dest is where p goes.
func dest(p []byte) netip.Addr { return netip.AddrFrom4([4]byte(p[ipDest:])) }

// fragment tells whether p is a part of a packet.
func fragment(p []byte) bool { return binary.BigEndian.Uint16(p[ipFragment:])&^dontFragment != 0 }

// age takes one from the packet's time to live, and tells whether some is left.
func age(p []byte) bool {
	if p[ipTTL] <= 1 {
		return false
	}
	p[ipTTL]--
	sum := uint32(binary.BigEndian.Uint16(p[ipChecksum:])) + 0x100
	binary.BigEndian.PutUint16(p[ipChecksum:], uint16(sum+sum>>16))
	return true
}

// seal computes the checksum of an IPv4 header.
func seal(header []byte) {
	header[ipChecksum], header[ipChecksum+1] = 0, 0
	binary.BigEndian.PutUint16(header[ipChecksum:], ^fold(sum(header, 0)))
}

// pseudo is the sum of the pseudo header of a packet whose transport part has a length.
func pseudo(p []byte, length int) uint64 {
	return sum(p[ipSource:ipDest+4], 0) + uint64(bits.ReverseBytes16(uint16(p[ipProtocol]))) + uint64(bits.ReverseBytes16(uint16(length)))
}

// sum adds b to a sum of 16-bit words, in the machine's order, which is little-endian: that of big-endian words has the same
// bytes the other way round (RFC 1071).
func sum(b []byte, initial uint64) uint64 {
	s, carry := initial, uint64(0)
	for len(b) >= 64 {
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[32:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[40:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[48:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[56:]), carry)
		s += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(rest[:]), 0)
		s += carry
	}
	return s
}

// fold is the sum as a 16-bit big-endian word.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return bits.ReverseBytes16(uint16(s))
}
