package fastpath

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// site is a host of a rig that carries packets: the kernel's vxlan, a bridge, and a container on it.
type site struct {
	*Path
	number     int
	ns, inside netns.NsHandle // of the host, of its container
	peer       Claim
	own        Own
	c          Container
}

// vtepOf is the MAC of both vxlan links of a host.
func vtepOf(number int) kernel.MAC { return kernel.MAC{2, 0, 0, 1, 0, byte(number)} }

// newRig makes two hosts on one wire, with all that the slow way needs, and tracking connections if tracked. No fast path is
// attached.
func newRig(t testing.TB, tracked, zeroChecksum bool) (a, b *site) {
	a, b = &site{number: 1}, &site{number: 2}
	for _, s := range []*site{a, b} {
		s.ns, s.inside = nstest.New(t), nstest.New(t)
	}
	nstest.Sh(t, a.ns, "ip link add eth0 type veth peer name eth0 netns "+nstest.Path(b.ns))
	for _, s := range []*site{a, b} {
		nstest.Sh(t, s.ns, strings.NewReplacer("$I", fmt.Sprint(s.number), "$J", fmt.Sprint(3-s.number), "$CSUM", checksums(zeroChecksum),
			"$INSIDE", nstest.Path(s.inside)).Replace(`
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip link set eth0 up
ip address add 192.0.2.$I/24 dev eth0
ip address add 2001:db8::$I/64 dev eth0 nodad
ip link add overlay.1 mtu 1430 address 02:00:00:01:00:0$I type vxlan id 1 dev eth0 local 192.0.2.$I dstport 8472 nolearning noudpcsum
ip link add overlay6.1 mtu 1430 address 02:00:00:01:00:0$I type vxlan id 1 dev eth0 local 2001:db8::$I dstport 8472 nolearning $CSUM
ip link add cni0 mtu 1430 address 02:00:00:02:00:0$I type bridge
ip link set cni0 up
ip address add 10.1.$I.1/24 dev cni0
ip address add fd00:0:0:$I::1/64 dev cni0 nodad
for link in overlay.1 overlay6.1; do ip link set $link up; done
ip address add 10.1.$I.0/32 dev overlay.1
ip address add fd00:0:0:$I::/128 dev overlay6.1 nodad
bridge fdb append 02:00:00:01:00:0$J dev overlay.1 dst 192.0.2.$J
bridge fdb append 02:00:00:01:00:0$J dev overlay6.1 dst 2001:db8::$J
ip neigh add 10.1.$J.0 lladdr 02:00:00:01:00:0$J dev overlay.1
ip neigh add fd00:0:0:$J:: lladdr 02:00:00:01:00:0$J dev overlay6.1
ip route add 10.1.$J.0/24 via 10.1.$J.0 dev overlay.1 onlink
ip route add fd00:0:0:$J::/64 via fd00:0:0:$J:: dev overlay6.1 onlink
`))
		if tracked {
			nstest.Sh(t, s.ns, `nft -f - <<'NFT'
table inet track {
	chain forward { type filter hook forward priority 0; ct state invalid counter drop; }
	chain nat { type nat hook prerouting priority -100; ip daddr 10.99.0.1 dnat ip to 10.1.2.5; }
}
NFT`)
		}
		s.contain(t, s.inside)
		s.start(t, tracked, zeroChecksum)
	}
	return a, b
}

func checksums(zero bool) string {
	if zero {
		return "udp6zerocsumtx udp6zerocsumrx"
	}
	return ""
}

// contain makes inside a container of the host, with the address that its container always has.
func (s *site) contain(t testing.TB, inside netns.NsHandle) {
	s.inside = inside
	nstest.Sh(t, s.ns, fmt.Sprintf("ip link add c0 mtu 1430 type veth peer name eth0 mtu 1430 netns %s; ip link set c0 master cni0 up", nstest.Path(inside)))
	nstest.Sh(t, inside, strings.ReplaceAll(`
ip link set lo up
ip link set eth0 up
ip address add 10.1.$I.5/24 dev eth0
ip address add fd00:0:0:$I::5/64 dev eth0 nodad
ip route add default via 10.1.$I.1
ip route add default via fd00:0:0:$I::1`, "$I", fmt.Sprint(s.number)))
	s.c = Container{
		Index: index(t, s.ns, "c0"), Bridge: index(t, s.ns, "cni0"), MAC: macOf(t, inside, "eth0"), Gateway: macOf(t, s.ns, "cni0"), Addrs: []netip.Addr{s.addr("IPv4"), s.addr("IPv6")},
	}
}

// addr is the container's address.
func (s *site) addr(family string) netip.Addr {
	if family == "IPv4" {
		return netip.AddrFrom4([4]byte{10, 1, byte(s.number), 5})
	}
	return addr(fmt.Sprintf("fd00:0:0:%d::5", s.number))
}

func (s *site) start(t testing.TB, tracked, zeroChecksum bool) {
	p, err := New(Config{Namespace: s.ns, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	s.Path = p
	other, mac := 3-s.number, vtepOf(s.number)
	host := func(n int) [2]netip.Addr {
		return [2]netip.Addr{addr(fmt.Sprintf("192.0.2.%d", n)), addr(fmt.Sprintf("2001:db8::%d", n))}
	}
	s.own = Own{Underlay: index(t, s.ns, "eth0"), MTU: 1430, Tunnels: []Tunnel{
		{Addr: host(s.number)[0], Port: 8472, VNI: 1, MAC: mac, Link: "overlay.1"},
		{Addr: host(s.number)[1], Port: 8472, VNI: 1, MAC: mac, Link: "overlay6.1"},
	}}
	p.SetOwn(s.own)
	peer := Peer{MAC: vtepOf(other), VNI: 1, Port: 8472, Near: true, ZeroChecksum: zeroChecksum}
	v4, v6 := peer, peer
	v4.Subnet, v4.Host = netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", other)), host(other)[0]
	v6.Subnet, v6.Host = netip.MustParsePrefix(fmt.Sprintf("fd00:0:0:%d::/64", other)), host(other)[1]
	s.peer = Claim{"peer", []Peer{v4, v6}}
	p.Replace([]Claim{s.peer})
	p.SetContainers([]Container{s.c})
	p.Use("", tracked, nil)
}

// run runs the fast path, from when it is attached on, until stop or the end of the test.
func (s *site) run(t testing.TB) (stop func()) {
	t.Helper()
	stop = nstest.Run(t, func(ctx context.Context) error { return s.Run(ctx) })
	s.awaitAttached(t)
	return stop
}

func (s *site) awaitAttached(t testing.TB) {
	t.Helper()
	eventually(t, "the programs are attached", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.attachedTo == 2 })
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for begin := time.Now(); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("never: " + what)
		}
	}
}

func index(t testing.TB, ns netns.NsHandle, name string) int { return iface(t, ns, name).Index }

func macOf(t testing.TB, ns netns.NsHandle, name string) kernel.MAC {
	return kernel.MAC(iface(t, ns, name).HardwareAddr)
}

func iface(t testing.TB, ns netns.NsHandle, name string) (l *net.Interface) {
	t.Helper()
	err := rtnl.InNetns(ns, func() (err error) {
		l, err = net.InterfaceByName(name)
		return err
	})
	if err != nil {
		t.Fatal(name, err)
	}
	return l
}
