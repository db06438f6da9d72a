package udptun

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// maxHeader is that of a packet of TCP whose IP header has no options.
const maxHeader = ipHeaderLen + 60

// joined is a large packet that is made of some of one TCP connection, as a network card does: the link takes it in one go. Their
// payload stays where it is. Zero, with give, it has none.
type joined struct {
	give func([]unix.Iovec)

	n      int    // how many it is made of
	first  []byte // of them
	header int    // its headers' length
	size   int    // of all payloads, but the last may be shorter
	len    int    // of all payloads together
	next   uint32 // sequence number of what would follow
	shut   bool   // nothing follows
	push   bool
	ios    []unix.Iovec
	room   [vnetLen + maxHeader]byte
}

// add gives a packet to the link, or keeps it for those that follow until flush. ip is the length of its IP header.
func (j *joined) add(p []byte, ip int) {
	p = p[:binary.BigEndian.Uint16(p[ipLength:])]
	header := joinable(p, ip)
	if j.n > 0 && header > 0 && j.follows(p, header) {
		j.append(p, header)
		return
	}
	j.flush()
	j.begin(p, header)
	if header == 0 {
		j.flush()
	}
}

// joinable is the length of the headers of a packet that can be joined with others: of TCP, with data, nothing but that to say, and
// whole, as its checksums tell; 0 if it cannot.
func joinable(p []byte, ip int) int {
	if ip != ipHeaderLen || p[ipProtocol] != protoTCP || fragment(p) || len(p) < ip+tcpHeaderLen {
		return 0
	}
	header := ip + int(p[ip+tcpOffset]>>4)*4
	if header < ip+tcpHeaderLen || header >= len(p) || p[ip+tcpFlags]&^tcpPSH != tcpACK {
		return 0
	}
	if fold(sum(p[:ip], 0)) != 0xffff || fold(sum(p[ip:], pseudo(p, len(p)-ip))) != 0xffff {
		return 0
	}
	return header
}

// follows tells whether p is the next of the connection, and says nothing else anew.
func (j *joined) follows(p []byte, header int) bool {
	const tcp = ipHeaderLen
	a, n := j.first, len(p)-header
	return !j.shut && header == j.header && n <= j.size && header+j.len+n <= maxPacketLen &&
		binary.BigEndian.Uint32(p[tcp+tcpSeq:]) == j.next &&
		bytes.Equal(a[tcp:tcp+tcpSeq], p[tcp:tcp+tcpSeq]) && // ports
		bytes.Equal(a[ipSource:tcp], p[ipSource:tcp]) &&
		bytes.Equal(a[tcp+tcpAck:tcp+tcpFlags], p[tcp+tcpAck:tcp+tcpFlags]) &&
		bytes.Equal(a[tcp+tcpWindow:tcp+tcpChecksum], p[tcp+tcpWindow:tcp+tcpChecksum]) &&
		bytes.Equal(a[tcp+tcpHeaderLen:header], p[tcp+tcpHeaderLen:header]) && // options
		a[ipTOS] == p[ipTOS] && a[ipTTL] == p[ipTTL] && a[ipFragment] == p[ipFragment]
}

func (j *joined) begin(p []byte, header int) {
	j.n, j.first, j.header, j.len, j.shut, j.push = 0, p, header, 0, false, false
	j.size = len(p) - header
	j.ios = append(j.ios[:0], unix.Iovec{})
	if header == 0 {
		j.n = 1
		return
	}
	j.next = binary.BigEndian.Uint32(p[ipHeaderLen+tcpSeq:])
	j.append(p, header)
}

func (j *joined) append(p []byte, header int) {
	payload := p[header:]
	j.n++
	j.len += len(payload)
	j.next += uint32(len(payload))
	j.push = p[ipHeaderLen+tcpFlags]&tcpPSH != 0
	j.shut = j.push || len(payload) < j.size
	j.ios = append(j.ios, unix.Iovec{Base: &payload[0], Len: uint64(len(payload))})
}

// flush gives the link what there is.
func (j *joined) flush() {
	switch j.n {
	case 0:
		return
	case 1: // as it came
		clear(j.room[:vnetLen])
		j.ios = append(j.ios[:0], unix.Iovec{Base: &j.room[0], Len: vnetLen}, unix.Iovec{Base: &j.first[0], Len: uint64(len(j.first))})
	default:
		j.ios[0] = unix.Iovec{Base: &j.room[0], Len: uint64(vnetLen + j.head())}
	}
	j.give(j.ios)
	j.n = 0
}

// head makes the header of all, and tells its length.
func (j *joined) head() int {
	vnet{
		flags: vnetNeedsChecksum, kind: vnetTCP4, headerLen: uint16(j.header), size: uint16(j.size),
		checksumFrom: ipHeaderLen, checksumAt: tcpChecksum,
	}.encode(j.room[:])
	p := j.room[vnetLen : vnetLen+j.header]
	copy(p, j.first)
	binary.BigEndian.PutUint16(p[ipLength:], uint16(j.header+j.len))
	seal(p[:ipHeaderLen])
	if j.push {
		p[ipHeaderLen+tcpFlags] |= tcpPSH
	}
	binary.BigEndian.PutUint16(p[ipHeaderLen+tcpChecksum:], fold(pseudo(p, j.header-ipHeaderLen+j.len)))
	return j.header
}
