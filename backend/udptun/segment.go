package udptun

import (
	"encoding/binary"
	"errors"
)

// vnetLen is the length of what precedes each packet at the TUN link (struct virtio_net_hdr of linux/virtio_net.h).
const vnetLen = 10

// Of linux/virtio_net.h.
const (
	vnetNeedsChecksum = 1
	vnetTCP4          = 1
	vnetUDP           = 5
	vnetECN           = 0x80
)

// vnet says what the kernel has left to do of a packet, in the machine's order.
type vnet struct {
	flags, kind              uint8
	headerLen, size          uint16 // size: of a segment's payload
	checksumFrom, checksumAt uint16
}

func decodeVnet(b []byte) vnet {
	return vnet{b[0], b[1], binary.NativeEndian.Uint16(b[2:]), binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint16(b[8:])}
}

func (v vnet) encode(b []byte) {
	b[0], b[1] = v.flags, v.kind
	binary.NativeEndian.PutUint16(b[2:], v.headerLen)
	binary.NativeEndian.PutUint16(b[4:], v.size)
	binary.NativeEndian.PutUint16(b[6:], v.checksumFrom)
	binary.NativeEndian.PutUint16(b[8:], v.checksumAt)
}

var errMalformed = errors.New("malformed packet")

// finish computes the checksum of p that the kernel has left out.
func (v vnet) finish(p []byte) error {
	from, at := int(v.checksumFrom), int(v.checksumFrom)+int(v.checksumAt)
	if from < ipHeaderLen || at+2 > len(p) {
		return errMalformed
	}
	c := ^fold(sum(p[from:], 0)) // what is in its place is the sum of the pseudo header
	if c == 0 && p[ipProtocol] == protoUDP {
		c = 0xffff // 0 is none
	}
	binary.BigEndian.PutUint16(p[at:], c)
	return nil
}

// segments are the packets that a large one is made into. Each has a header of its own, and a part of the payload, which stays
// where it is.
type segments struct {
	from    []byte
	ip      int // length of the IP header
	header  int // of both headers
	size    int
	payload []byte
	n       int
}

// cut prepares to make segments of p, a whole packet of which headerLen told the length ip.
func (v vnet) cut(p []byte, ip int) (s segments, err error) {
	s = segments{from: p, ip: ip, size: int(v.size)}
	tcp := v.kind&^vnetECN == vnetTCP4
	switch {
	case tcp && p[ipProtocol] == protoTCP && len(p) >= ip+tcpHeaderLen:
		s.header = ip + int(p[ip+tcpOffset]>>4)*4
		if s.header < ip+tcpHeaderLen {
			return s, errMalformed
		}
	case !tcp && p[ipProtocol] == protoUDP:
		s.header = ip + udpHeaderLen
	default:
		return s, errMalformed
	}
	if s.header >= len(p) || s.size == 0 || fragment(p) {
		return s, errMalformed
	}
	s.payload = p[s.header:]
	s.n = (len(s.payload) + s.size - 1) / s.size
	return s, nil
}

// segment makes the header of the segment i in header, which has the length for it, and returns its payload.
func (s segments) segment(i int, header []byte) (payload []byte) {
	payload = s.payload[i*s.size : min((i+1)*s.size, len(s.payload))]
	copy(header, s.from[:s.header])
	binary.BigEndian.PutUint16(header[ipLength:], uint16(len(header)+len(payload)))
	binary.BigEndian.PutUint16(header[ipID:], binary.BigEndian.Uint16(s.from[ipID:])+uint16(i))
	seal(header[:s.ip])
	transport := header[s.ip:]
	at := tcpChecksum
	if header[ipProtocol] == protoUDP {
		at = udpChecksum
		binary.BigEndian.PutUint16(transport[udpLength:], uint16(len(transport)+len(payload)))
	} else {
		binary.BigEndian.PutUint32(transport[tcpSeq:], binary.BigEndian.Uint32(s.from[s.ip+tcpSeq:])+uint32(i*s.size))
		if i > 0 {
			transport[tcpFlags] &^= tcpCWR
		}
		if i < s.n-1 {
			transport[tcpFlags] &^= tcpFIN | tcpPSH
		}
	}
	transport[at], transport[at+1] = 0, 0
	c := ^fold(sum(payload, sum(transport, pseudo(header, len(transport)+len(payload)))))
	if c == 0 && at == udpChecksum {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(transport[at:], c)
	return payload
}
