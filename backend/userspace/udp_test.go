package userspace

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// serve makes a host's link for udp, with its address, and the other host of the pair as a peer.
func (h *host) serve(number, peer int) {
	h.t.Helper()
	at := func(a, b, c, d int) netip.Addr { return netip.AddrFrom4([4]byte{byte(a), byte(b), byte(c), byte(d)}) }
	h.must(h.UDP(kernel.UDPTun{Name: kernel.UDPName, Local: at(192, 0, 2, number), Port: 8285, MTU: 1472}))
	h.must(h.SetUDPPeers(kernel.UDPName, []kernel.UDPPeer{{Subnet: netip.PrefixFrom(at(10, 5, peer, 0), 24), Host: at(192, 0, 2, peer)}}, nil))
	nstest.Sh(h.t, h.ns, fmt.Sprintf("ip address add 10.5.%d.0/32 dev overlay.udp; ip route add 10.5.0.0/16 dev overlay.udp", number))
}

// flannel is a socket in a host that stands for flanneld: it sees what is on the wire, and can send anything.
func (h *host) flannel(addr string, port int) *net.UDPConn {
	h.t.Helper()
	var conn net.PacketConn
	h.must(rtnl.InNetns(h.ns, func() (err error) {
		conn, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", fmt.Sprintf("%s:%d", addr, port))
		return err
	}))
	h.t.Cleanup(func() { conn.Close() })
	return conn.(*net.UDPConn)
}

// next is the next packet on the wire; nil if none comes.
func next(conn *net.UDPConn, patience time.Duration) []byte {
	b := make([]byte, 1<<16)
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	n, err := conn.Read(b)
	if err != nil {
		return nil
	}
	return b[:n]
}

// echo is a packet of ICMP.
func echo(t *testing.T, kind ipv4.ICMPType, from, to string, ttl, id, size int) []byte {
	t.Helper()
	m := icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: 1, Data: make([]byte, size)}}
	body, err := m.Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 20+len(body))
	p[0], p[8], p[9] = 0x45, byte(ttl), 1
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], net.ParseIP(from).To4())
	copy(p[16:], net.ParseIP(to).To4())
	copy(p[20:], body)
	binary.BigEndian.PutUint16(p[10:], ^words(p[:20]))
	return p
}

// words is the sum of the 16-bit words of b, as checksums have it.
func words(b []byte) uint16 {
	var s uint32
	for i, c := range b {
		s += uint32(c) << (8 * (1 - i&1))
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// On the wire are the inner packets, as flannel has them, and nothing else.
func TestUDPWire(t *testing.T) {
	t.Parallel()
	a, b := udpPair(t)
	nstest.Sh(t, b.ns, "ip address add 192.0.2.77/24 dev eth0")
	flannel, stranger := b.flannel("192.0.2.2", 8285), b.flannel("192.0.2.77", 8285)
	a.serve(1, 2)

	// What the host sends: one time to live less, and a payload that is the packet.
	sent := make(chan string)
	go func() { sent <- nstest.Sh(t, a.ns, "ping -n -c 1 -W 2 -t 9 -s 100 10.5.2.7 || true") }()
	p := next(flannel, 10*time.Second)
	if len(p) != 128 || p[0] != 0x45 || p[8] != 8 || p[9] != 1 || words(p[:20]) != 0xffff || words(p[20:]) != 0xffff ||
		!bytes.Equal(p[12:20], []byte{10, 5, 1, 0, 10, 5, 2, 7}) {
		t.Fatalf("on the wire is %x", p)
	}
	// What it receives: from whatever port, but of no other address.
	id := int(binary.BigEndian.Uint16(p[24:]))
	reply := echo(t, ipv4.ICMPTypeEchoReply, "10.5.2.7", "10.5.1.0", 5, id, 100)
	copy(reply[28:], p[28:])
	binary.BigEndian.PutUint16(reply[22:], 0)
	binary.BigEndian.PutUint16(reply[22:], ^words(reply[20:]))
	_, err := b.flannel("192.0.2.2", 1234).WriteTo(reply, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 8285})
	a.must(err)
	if said := <-sent; !strings.Contains(said, "ttl=4") {
		t.Errorf("ping says\n%s", said)
	}

	send := func(from *net.UDPConn, p []byte) []byte {
		_, err := from.WriteTo(p, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 8285})
		a.must(err)
		return next(flannel, 300*time.Millisecond)
	}
	ask := func(ttl int) []byte { return echo(t, ipv4.ICMPTypeEcho, "10.5.2.7", "10.5.1.0", ttl, 7, 56) }
	if p := send(flannel, ask(2)); len(p) != 84 {
		t.Errorf("a request is answered %x", p)
	}
	for what, got := range map[string][]byte{
		"of a stranger":         send(stranger, ask(2)),
		"whose time is over":    send(flannel, ask(1)),
		"without a time":        send(flannel, ask(0)),
		"of nothing":            send(flannel, nil),
		"of a byte":             send(flannel, []byte{0x45}),
		"of half a header":      send(flannel, ask(2)[:19]),
		"that is cut off":       send(flannel, ask(2)[:83]),
		"of IPv6":               send(flannel, append([]byte{0x60}, make([]byte, 60)...)),
		"with a wrong checksum": send(flannel, append(ask(2)[:10:10], append([]byte{0, 0}, ask(2)[12:]...)...)),
	} {
		if got != nil {
			t.Errorf("a packet %s is answered %x", what, got)
		}
	}
	if p := send(flannel, append(ask(2), "padding"...)); len(p) != 84 {
		t.Errorf("a request with padding is answered %x", p)
	}
}

// Where nobody has the subnet, the sender hears it.
func TestUDPUnreachable(t *testing.T) {
	t.Parallel()
	a, _ := udpPair(t)
	a.serve(1, 2)
	said := nstest.Sh(t, a.ns, "ping -n -c 1 -W 5 10.5.77.1 || true")
	if !strings.Contains(said, "From 10.5.77.1 icmp_seq=1 Destination Net Unreachable") {
		t.Errorf("ping says\n%s", said)
	}
	if said := nstest.Sh(t, a.ns, "socat -u - UDP4:10.5.77.1:9 </etc/hostname; sleep 0.1; nstat -asz IcmpInDestUnreachs"); strings.Contains(said, " 0 ") {
		t.Errorf("nstat says\n%s", said)
	}
}

// plain carries packets one by one, as flanneld does, for a host: whatever comes must be finished.
func (h *host) plain(peer string) {
	h.t.Helper()
	conn := h.flannel("192.0.2.2", 8285)
	var file *os.File
	h.must(rtnl.InNetns(h.ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq("flannel0")
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "tun")
		return nil
	}))
	h.t.Cleanup(func() { file.Close() })
	nstest.Sh(h.t, h.ns, "ip link set flannel0 up mtu 1472; ip address add 10.5.2.0/32 dev flannel0; ip route add 10.5.0.0/16 dev flannel0")
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, err := file.Read(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(b[:n], &net.UDPAddr{IP: net.ParseIP(peer), Port: 8285})
		}
	}()
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			_, _ = file.Write(b[:n])
		}
	}()
}

// Large transfers arrive as they were sent, between two of ours and with one that carries packets one by one.
func TestUDPTransfer(t *testing.T) {
	t.Parallel()
	for _, other := range []string{"ours", "one by one"} {
		for _, family := range []string{"offload", "no offload"} {
			t.Run(other+", "+family, func(t *testing.T) {
				t.Parallel()
				a, b := udpPair(t)
				a.serve(1, 2)
				if other == "ours" {
					b.serve(2, 1)
				} else {
					b.plain("192.0.2.1")
				}
				if family == "no offload" { // the kernel then refuses to make datagrams of large ones: EIO
					for _, h := range []*host{a, b} {
						nstest.Sh(t, h.ns, "ethtool -K eth0 tx off tso off gso off gro off 2>/dev/null || true")
					}
				}
				a.eventually("the other is reached", func() bool { return a.ping("10.5.2.0") })
				transfer(t, a, b, "10.5.2.0:7")
				transfer(t, b, a, "10.5.1.0:7")
				datagrams(t, a, b, "10.5.2.0:8")
			})
		}
	}
}

// transfer sends bytes by TCP to a host.
func transfer(t *testing.T, from, to *host, addr string) {
	t.Helper()
	var l net.Listener
	to.must(rtnl.InNetns(to.ns, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", addr)
		return err
	}))
	defer l.Close()
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	got := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- nil
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		got <- b
	}()
	var c net.Conn
	from.must(rtnl.InNetns(from.ns, func() (err error) {
		c, err = net.DialTimeout("tcp4", addr, 10*time.Second)
		return err
	}))
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, err := c.Write(data)
	from.must(err)
	c.Close()
	select {
	case b := <-got:
		if !bytes.Equal(b, data) {
			t.Errorf("%d bytes arrived of %d, or others", len(b), len(data))
		}
	case <-time.After(30 * time.Second):
		t.Error("the transfer does not end")
	}
}

// datagrams sends large ones that the kernel shall cut (UDP_SEGMENT), and small ones.
func datagrams(t *testing.T, from, to *host, addr string) {
	t.Helper()
	at := netip.MustParseAddrPort(addr)
	server := to.flannel(at.Addr().String(), int(at.Port()))
	var c net.Conn
	from.must(rtnl.InNetns(from.ns, func() (err error) {
		c, err = net.Dial("udp4", addr)
		return err
	}))
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	from.must(err)
	data := make([]byte, 10*1000+1)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	for _, size := range []int{1000, 0} {
		from.must(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) }))
		from.must(err)
		var want [][]byte
		if size > 0 {
			for rest := data; len(rest) > 0; rest = rest[min(size, len(rest)):] {
				want = append(want, rest[:min(size, len(rest))])
			}
		} else {
			want = [][]byte{data[:1400], {}, data[:1], data[:1444], data[:5000]} // the last is sent in fragments
		}
		if size > 0 {
			_, err = c.Write(data)
			from.must(err)
		} else {
			for _, d := range want {
				_, err = c.Write(d)
				from.must(err)
			}
		}
		for i, d := range want {
			if got := next(server, 10*time.Second); !bytes.Equal(got, d) {
				t.Errorf("datagram %d of size %d has %d bytes, not %d, or others", i, size, len(got), len(d))
			}
		}
	}
}
