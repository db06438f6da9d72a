package probe

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Numbers of ICMP and ICMPv6 (IANA protocol numbers), and the size of their echo header.
const (
	protocolICMP   = 1
	protocolICMPv6 = 58
	echoHeader     = 8
)

// readBuffer holds the answers to all that may be under way: the kernel counts about 800 bytes for each.
const readBuffer = 2 * window * 800

// closedPort is one at which hardly anything listens: traceroute sends to it for that reason.
const closedPort = 33434

// socket sends and receives echoes of one address family.
type socket struct {
	conn     *net.IPConn
	udp      *net.UDPConn
	closed   int // the code by which ICMP says that nobody listens
	id       int
	protocol int
	request  icmp.Type
	reply    icmp.Type
	header   int // of IP, in bytes
}

// listen opens a raw socket whose packets are not fragmented, whatever the kernel believes about the path.
func listen(v4 bool) (*socket, error) {
	s := &socket{
		// Another one each time: connection tracking lets pass what is of an old one, whatever the firewall says by now.
		id: rand.IntN(1 << 16), protocol: protocolICMPv6,
		request: ipv6.ICMPTypeEchoRequest, reply: ipv6.ICMPTypeEchoReply, header: ipv6.HeaderLen, closed: 4,
	}
	network, udp := "ip6:ipv6-icmp", "udp6"
	level, option, value := unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	if v4 {
		network, udp, s.closed = "ip4:icmp", "udp4", 3
		s.protocol, s.request, s.reply, s.header = protocolICMP, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, ipv4.HeaderLen
		level, option, value = unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	}
	conn, err := net.ListenIP(network, nil)
	if err != nil {
		return nil, err
	}
	s.conn = conn
	if s.udp, err = net.ListenUDP(udp, nil); err != nil {
		conn.Close()
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		s.close()
		return nil, err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), level, option, value)
		if optErr == nil && !v4 {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
		}
		if optErr == nil && unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer) != nil {
			// Without CAP_NET_ADMIN as much as net.core.rmem_max allows.
			optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, readBuffer)
		}
	})
	if err == nil {
		err = os.NewSyscallError("setsockopt", optErr)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close ends read.
func (s *socket) close() {
	s.conn.Close()
	s.udp.Close()
}

// The payload of an echo: the cookie, the target and the round.
const payloadHeader = 8 + 4 + 4

func (s *socket) send(to Target, cookie [8]byte, target, round int) error {
	size := max(to.Size, least)
	payload := make([]byte, size-s.header-echoHeader)
	copy(payload, cookie[:])
	binary.BigEndian.PutUint32(payload[8:], uint32(target))
	binary.BigEndian.PutUint32(payload[12:], uint32(round))
	if to.UDP { // whose header is as long
		_, err := s.udp.WriteToUDPAddrPort(payload, netip.AddrPortFrom(to.Addr, closedPort))
		return err
	}
	m := icmp.Message{Type: s.request, Body: &icmp.Echo{ID: s.id, Seq: round & 0xffff, Data: payload}}
	packet, err := m.Marshal(nil) // the kernel fills in the checksum of ICMPv6
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	_, err = s.conn.WriteToIP(packet, &net.IPAddr{IP: to.Addr.AsSlice(), Zone: to.Addr.Zone()})
	return err
}

// read hands on what comes back of the echoes with the cookie, until the socket is closed.
func (s *socket) read(cookie [8]byte, answered func(target, round int, from netip.Addr, at time.Time)) {
	buf := make([]byte, 1<<16)
	for {
		n, addr, err := s.conn.ReadFromIP(buf)
		at := time.Now()
		if err != nil {
			return
		}
		m, err := icmp.ParseMessage(s.protocol, buf[:n])
		if err != nil {
			continue
		}
		data := s.payload(m)
		if len(data) < payloadHeader || [8]byte(data[:8]) != cookie {
			continue
		}
		from, _ := netip.AddrFromSlice(addr.IP)
		target, round := binary.BigEndian.Uint32(data[8:]), binary.BigEndian.Uint32(data[12:])
		answered(int(target), int(round), from.Unmap(), at)
	}
}

// payload is what was sent and is answered: by an echo, or by a kernel that says that nobody listens, and quotes it.
func (s *socket) payload(m *icmp.Message) []byte {
	switch body := m.Body.(type) {
	case *icmp.Echo:
		if m.Type == s.reply {
			return body.Data
		}
	case *icmp.DstUnreach:
		header := s.header
		if len(body.Data) > 0 && s.protocol == protocolICMP {
			header = int(body.Data[0]&0xf) * 4
		}
		if quoted := header + echoHeader; m.Code == s.closed && len(body.Data) > quoted {
			return body.Data[quoted:]
		}
	}
	return nil
}
