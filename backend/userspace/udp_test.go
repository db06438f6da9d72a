package userspace

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

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
	flannel := b.flannel("192.0.2.2", 8285)
	a.serve(1, 2)

	// What the host sends: one time to live less, and a payload that is the packet.
	sent := make(chan string)
	go func() { sent <- nstest.Sh(t, a.ns, "ping -n -c 1 -W 2 -t 9 -s 100 10.5.2.7 || true") }()
	p := next(flannel, 10*time.Second)
	if len(p) != 128 || p[0] != 0x45 || p[8] != 8 || p[9] != 1 || words(p[:20]) != 0xffff || words(p[20:]) != 0xffff ||
		!bytes.Equal(p[12:20], []byte{10, 5, 1, 0, 10, 5, 2, 7}) {
		t.Fatalf("on the wire is %x", p)
	}
	// What it receives: from whatever port. Whose addresses may is the guard's business.
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

// What waits in the link's queue when its peer is removed, for a host is reached in another way now, is carried yet; then the
// peer is none. One that is put again meanwhile stays.
func TestUDPPeerLeaves(t *testing.T) {
	t.Parallel()
	a, b := udpPair(t)
	flannel := b.flannel("192.0.2.2", 8285)
	a.serve(1, 2)
	subnet := netip.MustParsePrefix("10.5.2.0/24")
	send := func() []byte {
		nstest.Sh(t, a.ns, "ping -n -c 1 -W 1 10.5.2.7 || true")
		return next(flannel, 10*time.Second)
	}
	gone := []kernel.UDPPeer{{Subnet: subnet}}
	a.must(a.SetUDPPeers(kernel.UDPName, nil, gone))
	if p := send(); len(p) != 84 {
		t.Errorf("on the wire is %x", p)
	}
	if peers, err := a.UDPPeers(kernel.UDPName); err != nil || len(peers) > 0 {
		t.Errorf("peers %v, %v", peers, err)
	}
	a.eventually("there is no way", func() bool {
		return strings.Contains(nstest.Sh(t, a.ns, "ping -n -c 1 -W 1 10.5.2.7 || true"), "Unreachable")
	})
	a.must(a.SetUDPPeers(kernel.UDPName, []kernel.UDPPeer{{Subnet: subnet, Host: netip.MustParseAddr("192.0.2.2")}}, nil))
	a.must(a.SetUDPPeers(kernel.UDPName, nil, gone))
	a.must(a.SetUDPPeers(kernel.UDPName, []kernel.UDPPeer{{Subnet: subnet, Host: netip.MustParseAddr("192.0.2.2")}}, nil))
	time.Sleep(3 * time.Second) // longer than one that leaves would linger
	for next(flannel, time.Millisecond) != nil {
	}
	if p := send(); len(p) != 84 {
		t.Errorf("on the wire is %x", p)
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

// Where the port of flannel's udp is taken no link comes and goes: each time one does, the daemon tries again at once.
func TestUDPPortTaken(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must(h.UDP(kernel.UDPTun{Name: "overlay.udp", MTU: 1400, Local: loopback, Port: 8285}))
	before := nstest.Sh(t, h.ns, "ip link add x0 type bridge; ip -o link show x0 | cut -d: -f1")
	for range 3 {
		refuses(t, h.UDP(kernel.UDPTun{Name: "overlay.udp2", MTU: 1400, Local: loopback, Port: 8285}), "is taken")
	}
	after := nstest.Sh(t, h.ns, "ip link add x1 type bridge; ip -o link show x1 | cut -d: -f1")
	if a, b := strings.TrimSpace(before), strings.TrimSpace(after); len(a) == len(b) && a[len(a)-1]+1 != b[len(b)-1] {
		t.Errorf("links were made between %s and %s", a, b)
	}
}
