package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// attacked is a network under attack: two hosts with a container each, and a stranger on their wire.
type attacked struct {
	t        *testing.T
	a, b     *Host      // a is the victim, b its peer
	in, on   *Container // in a, on b
	stranger *Node
	docker   *Node // a container of another network on b, that hides behind b
	link     string
	vtep     netip.Addr       // of a
	mac      net.HardwareAddr // of a's link
}

// underAttack makes the network, of one family.
func underAttack(t *testing.T, stack Stack, args ...string) *attacked {
	t.Helper()
	lab, wire := newWire(t, stack, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	s := &attacked{t: t, a: hosts[0], b: hosts[1], stranger: lab.node("stranger"), docker: lab.node("docker"), link: "overlay.1"}
	if stack.V6 {
		s.link = "overlay6.1"
	}
	for _, h := range hosts {
		h.Sysctl("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	}
	wire.Plug(s.stranger, "eth0", 66)
	startAll(t, hosts, append([]string{"--ip-masq"}, args...)...)
	s.in, s.on = s.a.NewContainer(), s.b.NewContainer()
	s.vtep = netip.MustParsePrefix(strings.Fields(s.a.Exec("sh", "-c", "ip -o address show dev "+s.link+" scope global"))[3]).Addr()
	_, mac, _ := strings.Cut(s.a.Exec("ip", "-o", "link", "show", "dev", s.link), "link/ether ")
	var err error
	if s.mac, err = net.ParseMAC(strings.Fields(mac)[0]); err != nil {
		t.Fatal(err)
	}
	s.b.Exec("sh", "-ec", `ip link add docker0 type veth peer name eth0 netns `+s.docker.Name+`
		ip link set docker0 up; ip addr add 172.17.0.1/24 dev docker0; ip addr add fd00:d::1/64 dev docker0
		nft 'add table inet docker; add chain inet docker out { type nat hook postrouting priority 100; }
			add rule inet docker out ip saddr 172.17.0.0/24 masquerade; add rule inet docker out ip6 saddr fd00:d::/64 masquerade'`)
	s.docker.Exec("sh", "-ec", `ip link set eth0 up; ip addr add 172.17.0.2/24 dev eth0; ip addr add fd00:d::2/64 dev eth0 nodad
		ip route add default via 172.17.0.1; ip route add default via fd00:d::1`)
	reach(t, s.in, s.on, s.mtu())
	return s
}

func (s *attacked) v6() bool { return s.vtep.Is6() }

func (s *attacked) mtu() int {
	if s.v6() {
		return 1430
	}
	return 1450
}

// either is one of two addresses, of the network's family.
func (s *attacked) either(four, six string) netip.Addr {
	if s.v6() {
		return netip.MustParseAddr(six)
	}
	return netip.MustParseAddr(four)
}

// near is an address in the same subnet, with another end.
func near(ip netip.Addr, end int) netip.Addr {
	b := ip.AsSlice()
	b[len(b)-1] = byte(end)
	if ip.Is6() {
		b[len(b)-2] = 0xee
	}
	ip, _ = netip.AddrFromSlice(b)
	return ip
}

func (s *attacked) own(end int) netip.Addr   { return near(s.in.Addrs[0], end) }
func (s *attacked) peers(end int) netip.Addr { return near(s.on.Addrs[0], end) }
func (s *attacked) outside() netip.Addr      { return s.either("198.51.100.7", "2001:db8:66::7") }

// tunnel has a node send a frame by vxlan.
func (s *attacked) tunnel(from *Node, to netip.Addr, frame []byte) {
	s.t.Helper()
	err := from.Do(func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(to, vxlanPort).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, frame...))
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPERM) {
			err = nil
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// inner has a node send a UDP packet from ip in the overlay to the victim's container.
func (s *attacked) inner(from *Node, to, ip netip.Addr) bool {
	s.t.Helper()
	return s.hears(s.in.Node, func(port int) { s.tunnel(from, to, ethernet(s.mac, packet(ip, s.in.Addrs[0], port, 8))) })
}

// raw has a node send a packet as it is.
func (s *attacked) raw(from *Node, dst netip.Addr, packet []byte) {
	s.t.Helper()
	err := from.Do(func() error {
		family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(dst.AsSlice()[:4])})
		if dst.Is6() {
			family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: dst.As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, to)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// hears tells whether an attack makes a UDP packet come to a port of the node.
func (s *attacked) hears(n *Node, attack func(port int)) bool {
	s.t.Helper()
	network := "udp4"
	if s.v6() {
		network = "udp6"
	}
	var c net.PacketConn
	if err := n.Do(func() (err error) { c, err = net.ListenPacket(network, ":0"); return err }); err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	for range 4 { // the first may wait for neighbours
		attack(c.LocalAddr().(*net.UDPAddr).Port)
		c.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
		_, _, err := c.ReadFrom(make([]byte, 4096))
		if err == nil {
			return true
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Fatal(err)
		}
	}
	return false
}

// neighbours counts those on the victim's link.
func (s *attacked) neighbours() int {
	return strings.Count(s.a.Exec("ip", "neighbour", "show", "nud", "all", "dev", s.link), "\n")
}

var attackerMAC = net.HardwareAddr{0x02, 0x66, 0, 0, 0, 1}

func ethernet(to net.HardwareAddr, ip []byte) []byte {
	typ := uint16(unix.ETH_P_IP)
	if ip[0]>>4 == 6 {
		typ = unix.ETH_P_IPV6
	}
	return append(binary.BigEndian.AppendUint16(append(append([]byte{}, to...), attackerMAC...), typ), ip...)
}

// packet is a UDP packet.
func packet(src, dst netip.Addr, port, size int) []byte {
	udp := binary.BigEndian.AppendUint16(nil, 4444)
	udp = binary.BigEndian.AppendUint16(udp, uint16(port))
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+size))
	udp = append(append(udp, 0, 0), make([]byte, size)...)
	binary.BigEndian.PutUint16(udp[6:], checksum(src, dst, unix.IPPROTO_UDP, udp))
	return header(src, dst, unix.IPPROTO_UDP, 64, udp)
}

func header(src, dst netip.Addr, protocol, hops byte, payload []byte) []byte {
	var h []byte
	if src.Is4() {
		h = append([]byte{0x45, 0}, binary.BigEndian.AppendUint16(nil, uint16(20+len(payload)))...)
		h = append(h, 0, 1, 0, 0, hops, protocol, 0, 0)
		h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(h[10:], fold(0, h))
	} else {
		h = append([]byte{0x60, 0, 0, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(payload)))...)
		h = append(append(append(h, protocol, hops), src.AsSlice()...), dst.AsSlice()...)
	}
	return append(h, payload...)
}

// checksum is that of a payload with its pseudo header.
func checksum(src, dst netip.Addr, protocol byte, payload []byte) uint16 {
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, protocol)
	sum := uint32(0)
	for b := append(pseudo, byte(len(payload)>>8), byte(len(payload))); len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	return fold(sum, payload)
}

func fold(sum uint32, b []byte) uint16 {
	if len(b)%2 == 1 {
		b = append(b[:len(b):len(b)], 0)
	}
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// icmp6 is a frame with an ICMPv6 message.
func icmp6(to net.HardwareAddr, src, dst netip.Addr, message []byte) []byte {
	binary.BigEndian.PutUint16(message[2:], checksum(src, dst, unix.IPPROTO_ICMPV6, message))
	return ethernet(to, header(src, dst, unix.IPPROTO_ICMPV6, 255, message))
}

// advertisement is of a router that wants to be everybody's.
func advertisement() []byte {
	message := append([]byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1}, attackerMAC...)
	return icmp6(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, netip.MustParseAddr("fe80::66"), netip.MustParseAddr("ff02::1"), message)
}

// solicitation asks for an address and says whose the question is.
func solicitation(to net.HardwareAddr, src, target netip.Addr) []byte {
	message := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
	return icmp6(to, src, target, append(append(message, 1, 1), attackerMAC...))
}

// question is ARP's.
func question(to net.HardwareAddr, src, target netip.Addr) []byte {
	b := append(append([]byte{}, to...), attackerMAC...)
	b = append(append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1), attackerMAC...)
	b = append(append(b, src.AsSlice()...), 0, 0, 0, 0, 0, 0)
	return append(b, target.AsSlice()...)
}

func (s *attacked) String() string { return fmt.Sprint(s.a.Name, " with its peer ", s.b.Name) }
