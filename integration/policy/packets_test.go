package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// datagram asks a server of UDP for an echo of size bytes. Whether it comes is told as soon as it does, if it is wanted; that it
// does not, only once all that was sent has come to wherever it comes to.
func (p *pod) datagram(to netip.Addr, port uint16, size int, want bool) bool {
	p.t.Helper()
	var conn net.Conn
	if err := p.do(func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(to, port).String())
		return err
	}); err != nil {
		p.t.Fatal(err)
	}
	defer conn.Close()
	out, in := make([]byte, size), make([]byte, size+1)
	p.rig.runs++
	binary.BigEndian.PutUint32(out, uint32(p.rig.runs))
	tries := 1
	if want {
		tries = 20
	}
	for range tries {
		_, _ = conn.Write(out) // refused: no echo
		if !want {
			p.rig.settle()
		}
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := conn.Read(in); err == nil && n == size && string(in[:n]) == string(out) {
			return true
		}
	}
	return false
}

// raw sends an IP payload of a protocol from one container to another, and tells whether it is seen there.
func (p *pod) raw(to *pod, family, proto int, payload []byte, want bool) bool {
	p.t.Helper()
	open := func(at *pod) int {
		var fd int
		if err := at.do(func() (err error) {
			fd, err = unix.Socket([]int{unix.AF_INET, unix.AF_INET6}[family], unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
			return err
		}); err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	receiver, sender := open(to), open(p)
	_ = unix.SetsockoptTimeval(receiver, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
	tries := 1
	if want {
		tries = 20
	}
	for range tries {
		_ = unix.Sendto(sender, payload, 0, sockaddr(to.addrs[family], 0))
		if !want {
			p.rig.settle()
		}
		buf := make([]byte, 4096)
		for {
			n, _, err := unix.Recvfrom(receiver, buf, 0)
			if err != nil {
				break
			}
			got := buf[:n]
			if family == v4 && n > 20 {
				got = got[20:]
			}
			if len(got) == len(payload) && string(got[4:]) == string(payload[4:]) { // what comes first may be a checksum
				return true
			}
		}
	}
	return false
}

// families are the names of the indices.
var families = [2]string{"IPv4", "IPv6"}

// TestFragments finds the fragments of a datagram following the first.
func TestFragments(t *testing.T) {
	p := newPaths(t)
	const size = 5000
	check := func(what string, want map[uint16]bool) {
		t.Helper()
		p.check(what) // until then it may not be in force
		for _, from := range []*pod{p.near, p.far, p.outside} {
			for f, family := range families {
				for port, w := range want {
					if got := from.datagram(p.web.addrs[f], port, size, w); got != w {
						t.Errorf("%s: %s to port %d from %s: passes %t", what, family, port, from.key(), got)
					}
				}
			}
		}
		total.addCase()
	}
	check("no policy", map[uint16]bool{80: true, 81: true})
	p.apply("dev", netpolText("dev", "p", "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{protocol: UDP, port: 80}]}]}"))
	check("one port", map[uint16]bool{80: true, 81: false})
	p.apply("dev", netpolText("dev", "p", "{podSelector: {matchLabels: {app: web}}}"))
	check("deny all", map[uint16]bool{80: false, 81: false})
	p.remove("dev/p")
}

// TestProtocolsWithoutPorts finds GRE passing by rules without ports alone.
func TestProtocolsWithoutPorts(t *testing.T) {
	p := newPaths(t)
	gre := append([]byte{0, 0, 0x88, 0xb5}, "nobody's protocol"...)
	check := func(what string, want bool) {
		t.Helper()
		p.check(what) // until then it may not be in force
		for _, from := range []*pod{p.near, p.far} {
			for f, family := range families {
				if got := from.raw(p.web, f, unix.IPPROTO_GRE, gre, want); got != want {
					t.Errorf("%s: GRE over %s from %s: passes %t", what, family, from.key(), got)
				}
			}
		}
		total.addCase()
	}
	check("no policy", true)
	p.apply("dev", netpolText("dev", "p", "{podSelector: {}, ingress: [{ports: [{protocol: TCP}, {protocol: UDP}, {protocol: SCTP}]}]}"))
	check("all that has ports", false)
	p.apply("dev", netpolText("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"))
	check("everybody, no ports", true)
	p.apply("dev", netpolText("dev", "p", "{podSelector: {}}"))
	check("deny all", false)
	p.remove("dev/p")
}

// TestErrorsOfAllowedConnections finds port unreachable and fragmentation needed coming to a container that lets nothing in, if
// they are about what it sent; and others not.
func TestErrorsOfAllowedConnections(t *testing.T) {
	p := newPaths(t)
	forged := func(family int, want bool) bool {
		return p.far.raw(p.web, family, icmpProto[family], p.unreachable(family), want)
	}
	for f, family := range families {
		if !forged(f, true) {
			t.Errorf("without a policy an error about nothing does not come over %s: this test shows nothing", family)
		}
	}
	p.apply("dev", netpolText("dev", "p", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], egress: [{ports: [{protocol: UDP}]}]}"))
	p.check("what it sends by UDP is allowed")
	mtu := 1290
	for f, family := range families {
		if err := p.web.refused(p.far.addrs[f]); err != nil {
			t.Errorf("port unreachable over %s: %v", family, err)
		}
		if forged(f, false) {
			t.Errorf("an error about nothing comes over %s", family)
		}
		a := p.far.addrs[f]
		p.hosts[1].exec("ip", "route", "replace", fmt.Sprintf("%s/%d", a, a.BitLen()), "dev", p.bridgeOf(p.hosts[1], a), "mtu", fmt.Sprint(mtu))
		if err := p.web.learns(a, mtu); err != nil {
			t.Errorf("fragmentation needed over %s: %v", family, err)
		}
		total.addCase()
	}
	p.remove("dev/p")
}

var icmpProto = [2]int{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}

// bridgeOf is the link by which a host reaches a container of its own.
func (p *paths) bridgeOf(h *host, a netip.Addr) string {
	var dev, word string
	out := h.exec("ip", "-o", "route", "get", a.String())
	for _, w := range strings.Fields(out) {
		if word == "dev" {
			dev = w
		}
		word = w
	}
	return dev
}

// unreachable is an ICMP error about a datagram that web never sent to far.
func (p *paths) unreachable(family int) []byte {
	src, dst := p.web.addrs[family], p.far.addrs[family]
	udp := []byte{0x30, 0x39, 0x30, 0x3a, 0, 8, 0, 0} // from port 12345 to 12346
	if family == v6 {
		inner := append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64}, append(src.AsSlice(), dst.AsSlice()...)...)
		return append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, append(inner, udp...)...) // the kernel has the checksum
	}
	inner := append([]byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0}, append(src.AsSlice(), dst.AsSlice()...)...)
	binary.BigEndian.PutUint16(inner[10:], checksum(inner))
	b := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, append(inner, udp...)...)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// dialUDP is a connected socket of the container's.
func (p *pod) dialUDP(to netip.Addr, port uint16) (*net.UDPConn, error) {
	var c net.Conn
	err := p.do(func() (err error) {
		c, err = net.Dial("udp", netip.AddrPortFrom(to, port).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// refused sends to a port where nobody listens, until that is said.
func (p *pod) refused(to netip.Addr) error {
	c, err := p.dialUDP(to, 9)
	if err != nil {
		return err
	}
	defer c.Close()
	for range 20 {
		_, _ = c.Write([]byte("x")) // says what came of the one before
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err = c.Read(make([]byte, 1)); errors.Is(err, unix.ECONNREFUSED) {
			return nil
		}
	}
	return fmt.Errorf("nobody says so: %w", err)
}

// learns sends what is too large for the way, until the kernel has learned how much is not.
func (p *pod) learns(to netip.Addr, mtu int) error {
	c, err := p.dialUDP(to, 80)
	if err != nil {
		return err
	}
	defer c.Close()
	sys, err := c.SyscallConn()
	if err != nil {
		return err
	}
	level, discover, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU
	if to.Is6() {
		level, discover, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU
	}
	known := 0
	for range 20 {
		var e error
		_ = sys.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), level, discover, unix.IP_PMTUDISC_DO)
			known, e = unix.GetsockoptInt(int(fd), level, option)
		})
		if e != nil {
			return e
		}
		if known == mtu {
			return nil
		}
		_, _ = c.Write(make([]byte, mtu+20))
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("it thinks that %d bytes are let through, not %d", known, mtu)
}
