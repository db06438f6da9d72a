package udptun

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// slow is the sum of 16-bit words as RFC 1071 has it.
func slow(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		s += word
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func TestSum(t *testing.T) {
	t.Parallel()
	for n := range 300 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		if n%3 == 0 {
			b = bytes.Repeat([]byte{0xff}, n) // carries all the way
		}
		if got, want := fold(sum(b, 0)), slow(b); got != want && !(got == 0xffff && want == 0) {
			t.Errorf("the sum of %d bytes is %#x, not %#x", n, got, want)
		}
	}
}

// tcp is a packet of TCP with options and a payload, whole.
func tcp(seq uint32, flags byte, payload []byte) []byte {
	const options = 12
	p := make([]byte, ipHeaderLen+tcpHeaderLen+options, ipHeaderLen+tcpHeaderLen+options+len(payload))
	p[0], p[ipTTL], p[ipProtocol], p[ipFragment] = 0x45, 64, protoTCP, 0x40
	binary.BigEndian.PutUint16(p[ipLength:], uint16(cap(p)))
	binary.BigEndian.PutUint16(p[ipID:], 0xfffe)
	copy(p[ipSource:], []byte{10, 5, 1, 2, 10, 5, 2, 3})
	segment := p[ipHeaderLen:]
	copy(segment, []byte{0xc0, 1, 0, 80})
	binary.BigEndian.PutUint32(segment[tcpSeq:], seq)
	segment[tcpOffset], segment[tcpFlags] = (tcpHeaderLen+options)/4<<4, flags
	copy(segment[tcpHeaderLen:], "\x01\x01\x08\x0atimestam")
	p = append(p, payload...)
	seal(p[:ipHeaderLen])
	binary.BigEndian.PutUint16(p[ipHeaderLen+tcpChecksum:], ^fold(sum(p[ipHeaderLen:], pseudo(p, len(p)-ipHeaderLen))))
	return p
}

// right tells whether both checksums of a packet are.
func right(p []byte) bool {
	return slow(p[:ipHeaderLen]) == 0xffff && fold(sum(p[ipHeaderLen:], pseudo(p, len(p)-ipHeaderLen))) == 0xffff
}

// A large packet that is cut, and joined again, is what it was.
func TestCutAndJoin(t *testing.T) {
	t.Parallel()
	for _, length := range []int{1, 999, 1000, 1001, 2000, 64000} {
		for _, flags := range []byte{tcpACK, tcpACK | tcpPSH} {
			payload := make([]byte, length)
			for i := range payload {
				payload[i] = byte(rand.Uint32())
			}
			large := tcp(0xffffff00, flags, payload)
			s, err := vnet{kind: vnetTCP4, size: 1000}.cut(large, ipHeaderLen)
			if err != nil {
				t.Fatal(err)
			}
			var got [][]byte
			j := joined{give: func(ios []unix.Iovec) { got = append(got, together(ios)) }}
			for i := range s.n {
				header := make([]byte, s.header)
				p := slices.Concat(header, s.segment(i, header))
				copy(p, header)
				if !right(p) || len(p) > s.header+1000 || int(binary.BigEndian.Uint16(p[ipLength:])) != len(p) {
					t.Errorf("of %d bytes, segment %d is wrong: %x", length, i, p[:s.header])
				}
				if id := binary.BigEndian.Uint16(p[ipID:]); id != uint16(0xfffe+i) {
					t.Errorf("segment %d has the ID %#x", i, id)
				}
				j.add(p, ipHeaderLen)
			}
			j.flush()
			if len(got) != 1 {
				t.Fatalf("%d bytes were joined to %d packets", length, len(got))
			}
			v, p := decodeVnet(got[0]), got[0][vnetLen:]
			if length > 1000 {
				if want := (vnet{vnetNeedsChecksum, vnetTCP4, uint16(s.header), 1000, ipHeaderLen, tcpChecksum}); v != want {
					t.Errorf("the kernel is told %+v, not %+v", v, want)
				}
				if err := v.finish(p); err != nil {
					t.Error(err)
				}
			} else if v != (vnet{}) {
				t.Errorf("the kernel is told %+v of what came as it is", v)
			}
			if !bytes.Equal(p, large) {
				t.Errorf("%d bytes: was and is\n%x\n%x", length, large[:60], p[:60])
			}
		}
	}
}

func together(ios []unix.Iovec) (b []byte) {
	for _, v := range ios {
		b = append(b, unsafeBytes(v)...)
	}
	return b
}

// What is not the same but for its data is not joined, and nothing that is wrong is made right.
func TestNotJoined(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte{7}, 100)
	change := func(at int, value byte) []byte {
		p := tcp(100, tcpACK, data)
		p[at] = value
		p[ipHeaderLen+tcpChecksum], p[ipHeaderLen+tcpChecksum+1] = 0, 0
		seal(p[:ipHeaderLen])
		binary.BigEndian.PutUint16(p[ipHeaderLen+tcpChecksum:], ^fold(sum(p[ipHeaderLen:], pseudo(p, len(p)-ipHeaderLen))))
		return p
	}
	corrupt := tcp(100, tcpACK, data)
	corrupt[len(corrupt)-1]++
	badHeader := tcp(100, tcpACK, data)
	badHeader[ipChecksum]++
	for what, second := range map[string][]byte{
		"a gap":             tcp(101, tcpACK, data),
		"again the same":    tcp(0, tcpACK, data),
		"longer":            tcp(100, tcpACK, append([]byte{1}, data...)),
		"no data":           tcp(100, tcpACK, nil),
		"FIN":               tcp(100, tcpACK|tcpFIN, data),
		"SYN":               tcp(100, tcpACK|2, data),
		"another port":      change(ipHeaderLen+1, 9),
		"another sender":    change(ipSource+3, 9),
		"another receiver":  change(ipDest+3, 9),
		"another window":    change(ipHeaderLen+tcpWindow, 9),
		"another ACK":       change(ipHeaderLen+tcpAck, 9),
		"other options":     change(ipHeaderLen+tcpHeaderLen+4, 9),
		"another TOS":       change(ipTOS, 3),
		"another TTL":       change(ipTTL, 9),
		"may be fragmented": change(ipFragment, 0),
		"a fragment":        change(ipFragment+1, 1),
		"UDP":               change(ipProtocol, protoUDP),
		"wrong data":        corrupt,
		"wrong header":      badHeader,
	} {
		first := tcp(0, tcpACK, data)
		var got [][]byte
		j := joined{give: func(ios []unix.Iovec) { got = append(got, together(ios)) }}
		for _, p := range [][]byte{first, second} {
			j.add(p, ipHeaderLen)
		}
		j.flush()
		if len(got) != 2 || !bytes.Equal(got[0][vnetLen:], first) || !bytes.Equal(got[1][vnetLen:], second) {
			t.Errorf("%s: of two packets %d were made, or others", what, len(got))
		}
	}
}

func TestAge(t *testing.T) {
	t.Parallel()
	for ttl := range 256 {
		p := tcp(0, tcpACK, nil)
		p[ipTTL] = byte(ttl)
		seal(p[:ipHeaderLen])
		alive := age(p)
		if alive != (ttl > 1) || alive && (int(p[ipTTL]) != ttl-1 || slow(p[:ipHeaderLen]) != 0xffff) {
			t.Errorf("TTL %d: %t, %x", ttl, alive, p[:ipHeaderLen])
		}
	}
}

func TestPeers(t *testing.T) {
	t.Parallel()
	subnet, host := netip.MustParsePrefix, netip.MustParseAddr
	p := newPeers().with([]Peer{{subnet("10.5.1.0/24"), host("192.0.2.1")}, {subnet("10.5.2.0/24"), host("192.0.2.1")}, {subnet("10.5.3.0/24"), host("192.0.2.3")}}, nil)
	next := p.with([]Peer{{subnet("10.5.3.0/24"), host("192.0.2.4")}}, []netip.Prefix{subnet("10.5.1.0/24"), subnet("10.5.9.0/24")})
	if len(p.all()) != 3 {
		t.Errorf("what was in use has changed: %v", p.all())
	}
	if got := next.all(); !slices.Equal(got, []Peer{{subnet("10.5.2.0/24"), host("192.0.2.1")}, {subnet("10.5.3.0/24"), host("192.0.2.4")}}) {
		t.Errorf("there are %v", got)
	}
}

// What a host sends may be anything; and so what comes out of the link, but its length.
func FuzzPackets(f *testing.F) {
	f.Add([]byte{}, uint16(0))
	f.Add(tcp(1, tcpACK, make([]byte, 300)), uint16(100))
	f.Fuzz(func(t *testing.T, p []byte, size uint16) {
		if len(p) > maxPacketLen {
			return
		}
		ip := headerLen(p)
		if ip == 0 {
			return
		}
		j := joined{give: func(ios []unix.Iovec) { together(ios) }}
		for range 2 {
			j.add(slices.Clone(p), ip)
		}
		j.flush()
		for _, kind := range []uint8{vnetTCP4, vnetUDP, vnetTCP4 | vnetECN} {
			s, err := vnet{kind: kind, size: size}.cut(p, ip)
			if err != nil {
				continue
			}
			header := make([]byte, s.header)
			for i := range s.n {
				s.segment(i, header)
			}
		}
		_ = vnet{checksumFrom: uint16(ip), checksumAt: size}.finish(slices.Clone(p))
	})
}
