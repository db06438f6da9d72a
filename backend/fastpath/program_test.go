package fastpath

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// The ends of the packets of the tests: two hosts, and a container on each.
var (
	container = kernel.MAC{2, 0, 0, 0, 0, 1}
	gateway   = kernel.MAC{2, 0, 0, 0, 0, 2}
	vtep      = kernel.MAC{2, 0, 0, 0, 0, 3}
	peerVTEP  = kernel.MAC{2, 0, 0, 0, 0, 4}
	peerHost  = kernel.MAC{2, 0, 0, 0, 0, 5}
)

// ends are the addresses of the tests in one family.
type ends struct {
	host, peer, natted, direct netip.Addr // of hosts; natted's packets come from direct
	local, policed, remote     netip.Addr // of containers
	far, behind                netip.Addr // of a container of natted; of one of direct
}

var families = map[string]ends{
	"IPv4": {
		addr("192.0.2.1"), addr("192.0.2.2"), addr("192.0.2.3"), addr("192.0.2.4"),
		addr("10.1.1.5"), addr("10.1.1.6"), addr("10.1.2.5"), addr("10.1.3.5"), addr("10.1.4.5"),
	},
	"IPv6": {
		addr("2001:db8::1"), addr("2001:db8::2"), addr("2001:db8::3"), addr("2001:db8::4"),
		addr("fd00:0:0:1::5"), addr("fd00:0:0:1::6"), addr("fd00:0:0:2::5"), addr("fd00:0:0:3::5"), addr("fd00:0:0:4::5"),
	},
}

var addr = netip.MustParseAddr

// skb is the kernel's struct __sk_buff.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VLANPresent, VLANTCI, VLANProto, Priority, IngressIfindex, Ifindex, TCIndex uint32
	CB                                                                                                                      [5]uint32
	Hash, TCClassid, Data, DataEnd, NapiID, Family, RemoteIP4, LocalIP4                                                     uint32
	RemoteIP6, LocalIP6                                                                                                     [4]uint32
	RemotePort, LocalPort, DataMeta                                                                                         uint32
	FlowKeys, Tstamp                                                                                                        uint64
	WireLen, GSOSegs                                                                                                        uint32
	Sk                                                                                                                      uint64
	GSOSize                                                                                                                 uint32
	TstampType                                                                                                              uint8
	_                                                                                                                       [3]byte
	Hwtstamp                                                                                                                uint64
}

// host is one with the fast path, on which programs are run without any packet on the wire.
type host struct {
	*Path
	underlay, veth int
	mac            kernel.MAC // of the underlay's link
}

func newHost(t *testing.T) host {
	p := newPath(t)
	nstest.Sh(t, p.cfg.Namespace, nstest.LAN+`
ip link add c0 mtu 1450 type veth peer name c1
ip link add cni0 type bridge
ip link set cni0 up
ip link set c0 master cni0 up
ip link set c1 up
ip link add overlay6.1 mtu 1430 type vxlan id 1 dev eth0 local 2001:db8::1 dstport 8472
ip link set overlay6.1 up
ip link set eth0 address 02:00:00:00:00:09`)
	h := host{Path: p, mac: kernel.MAC{2, 0, 0, 0, 0, 9}}
	rtnl.InNetns(p.cfg.Namespace, func() error {
		eth0, err := net.InterfaceByName("eth0")
		c0, err2 := net.InterfaceByName("c0")
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		h.underlay, h.veth = eth0.Index, c0.Index
		return nil
	})
	own := Own{Underlay: h.underlay, MTU: 1400}
	var peers []Peer
	c := Container{Index: h.veth, MAC: container, Gateway: gateway}
	for _, f := range families {
		own.Tunnels = append(own.Tunnels, Tunnel{Addr: f.host, Port: 8472, VNI: 1, MAC: vtep, Link: "overlay6.1"})
		subnet := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()-8).Masked() }
		to := Peer{Subnet: subnet(f.remote), Host: f.peer, MAC: peerVTEP, VNI: 1, Port: 8473, Near: true, ZeroChecksum: true}
		natted, direct := to, Peer{Subnet: subnet(f.behind), Host: f.direct, Near: true}
		natted.Subnet, natted.Host, natted.Source, natted.ZeroChecksum = subnet(f.far), f.natted, f.direct, false
		peers = append(peers, to, natted, direct)
		c.Addrs = append(c.Addrs, f.local, f.policed)
	}
	p.SetOwn(own)
	p.Replace([]Claim{{"a", peers}})
	p.SetSlow(func(a netip.Addr) bool { return a == families["IPv4"].policed || a == families["IPv6"].policed })
	p.SetContainers([]Container{c})
	p.Use("", false, nil)
	if s := p.Status(); s.Off != "" || s.Peers != 6 || s.Containers != 1 || len(s.Slow) != 2 {
		t.Fatalf("%+v", s)
	}
	return h
}

// run runs a program on a packet as if it came in by a link, and returns what it does, what becomes of the packet, and how it
// is counted.
func (h host) run(t *testing.T, program *ebpf.Program, link int, data []byte, gso uint32) (verdict int32, out []byte, way string) {
	t.Helper()
	before := h.packets()
	opts := &ebpf.RunOptions{Data: data, DataOut: make([]byte, 4096), Context: &skb{
		Ifindex: uint32(link), IngressIfindex: uint32(link), GSOSize: gso, Mark: 7, Priority: 7,
	}, ContextOut: &skb{}}
	var ret uint32
	err := rtnl.InNetns(h.cfg.Namespace, func() (err error) {
		ret, err = program.Run(opts)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := opts.ContextOut.(*skb); int32(ret) == redirect && (got.Mark != 0 || got.Priority != 0) {
		t.Errorf("mark %d and priority %d stay", got.Mark, got.Priority)
	}
	after := h.packets()
	for _, w := range slices.Sorted(maps.Keys(after)) {
		if after[w] != before[w] {
			way += w
		}
	}
	return int32(ret), opts.DataOut, way
}

// What a program may answer.
const (
	slow     = -1
	redirect = 7
)

// Each case says how the packet differs from one that is fast, and how it is counted then.
func TestFromContainer(t *testing.T) {
	h := newHost(t)
	for name, f := range families {
		for _, test := range []struct {
			change string
			way    string
			p      func(p *packet)
		}{
			{"none", "sent", func(p *packet) {}},
			{"UDP", "sent", func(p *packet) { p.proto = protoUDP }},
			{"TTL 2", "sent", func(p *packet) { p.ttl = 2 }},
			{"as large as the MTU", "sent", func(p *packet) { p.payload = make([]byte, 1400-len(packet{src: f.local, dst: f.remote}.ip())) }},
			{"over the MTU", "size", func(p *packet) { p.payload = make([]byte, 1401-len(packet{src: f.local, dst: f.remote}.ip())) }},
			{"TTL 1", "ttl", func(p *packet) { p.ttl = 1 }},
			{"SYN", "first", func(p *packet) { p.flags = flagSYN }},
			{"SYN-ACK", "first", func(p *packet) { p.flags = flagSYN | flagACK }},
			{"ICMP", "protocol", func(p *packet) { p.proto = protoICMP }},
			{"options or extension headers", "protocol", func(p *packet) { p.options = []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0} }},
			{"to nobody", "elsewhere", func(p *packet) { p.dst = f.host }},
			{"to a container of this host", "elsewhere", func(p *packet) { p.dst = f.policed }},
			{"past the gateway", "elsewhere", func(p *packet) { p.to = peerHost }},
			{"from another MAC", "source", func(p *packet) { p.from = peerHost }},
			{"from an address that nobody has", "source", func(p *packet) { p.src = f.local.Next().Next() }},
			{"of a policy", "container", func(p *packet) { p.src = f.policed }},
			{"shorter than it says", "protocol", func(p *packet) { p.length = 1 }},
			{"longer than it says", "protocol", func(p *packet) { p.trailer = make([]byte, 20) }},
		} {
			t.Run(name+"/"+test.change, func(t *testing.T) {
				p := packet{from: container, to: gateway, src: f.local, dst: f.remote, sport: 4000, dport: 80}
				test.p(&p)
				h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, test.way)
			})
		}
		p := packet{from: container, to: gateway, src: f.local, dst: f.remote}
		t.Run(name+"/by the link of another container", func(t *testing.T) {
			h.expect(t, h.kernel.FromContainer, h.underlay, p.bytes(), 0, "source")
		})
		t.Run(name+"/cut short", func(t *testing.T) {
			h.expect(t, h.kernel.FromContainer, h.veth, p.bytes()[:len(p.bytes())-10], 0, "protocol")
		})
		t.Run(name+"/for a card to make packets over the MTU of", func(t *testing.T) {
			p.payload = make([]byte, 3000)
			h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 1400-uint32(len(packet{src: f.local, dst: f.remote}.ip()))+1, "size")
		})
	}
	f := families["IPv4"]
	for change, fragment := range map[string]uint16{"first fragment": 0x2000, "last fragment": 100} {
		t.Run(change, func(t *testing.T) {
			p := packet{from: container, to: gateway, src: f.local, dst: f.remote, fragment: fragment}
			h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "protocol")
		})
	}
}

// hush has the kernel send nothing by itself: what is attached would count that, too.
func (h host) hush(t *testing.T) {
	t.Helper()
	nstest.Sh(t, h.cfg.Namespace, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
}

// expect runs a program, and says what is not as it should be: what is slow must be untouched.
func (h host) expect(t *testing.T, program *ebpf.Program, link int, data []byte, gso uint32, way string) []byte {
	t.Helper()
	verdict, out, got := h.run(t, program, link, data, gso)
	want := int32(redirect)
	if way != "sent" && way != "received" {
		if want = slow; !bytes.Equal(out, data) {
			t.Errorf("changed (-want +got):\n%s", diff(data, out))
		}
	}
	if verdict != want || got != way {
		t.Fatalf("verdict %d, counted as %q; want %d, %q", verdict, got, want, way)
	}
	return out
}

func diff(want, got []byte) string {
	return cmp.Diff(fmt.Sprintf("% x", want), fmt.Sprintf("% x", got))
}

// What is sent is compared whole.
func TestEncapsulated(t *testing.T) {
	h := newHost(t)
	for name, f := range families {
		for _, ecn := range []struct{ inner, outer byte }{{0, 0}, {1, 1}, {2, 2}, {3, 2}, {0xb8, 0}} {
			t.Run(fmt.Sprintf("%s/TOS %#x", name, ecn.inner), func(t *testing.T) {
				p := packet{from: container, to: gateway, src: f.local, dst: f.remote, sport: 4000, dport: 80, tos: ecn.inner, payload: []byte("hello"), id: 9}
				out := h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "sent")
				p.ttl, p.from, p.to = 63, vtep, peerVTEP
				outer := packet{from: container, to: gateway, src: f.host, dst: f.peer, dport: 8473, tos: ecn.outer}
				l4 := 14 + 20
				if outer.src.Is6() {
					l4 = 14 + 40
				} else {
					outer.id = uint16(out[18])<<8 | uint16(out[19])
				}
				outer.sport = uint16(out[l4])<<8 | uint16(out[l4+1])
				if want := p.in(outer, 1).bytes(); !bytes.Equal(out, want) {
					t.Errorf("-want +got:\n%s", diff(want, out))
				}
				if outer.sport < 32768 || outer.sport > 60999 {
					t.Errorf("source port %d is none of the kernel's", outer.sport)
				}
			})
		}
	}
}

// A peer over IPv6 that takes no packet without a checksum gets it from the kernel's vxlan.
func TestIntoOverlayLink(t *testing.T) {
	h := newHost(t)
	f := families["IPv6"]
	p := packet{from: container, to: gateway, src: f.local, dst: f.far, payload: []byte("hello")}
	out := h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "sent")
	p.ttl, p.from, p.to = 63, vtep, peerVTEP
	if want := p.bytes(); !bytes.Equal(out, want) {
		t.Errorf("-want +got:\n%s", diff(want, out))
	}
	nstest.Sh(t, h.cfg.Namespace, "ip link del overlay6.1")
	p.ttl, p.from, p.to = 64, container, gateway
	h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "gone")
}

// Without a tunnel a packet leaves as it is, but for its TTL.
func TestDirect(t *testing.T) {
	h := newHost(t)
	for name, f := range families {
		t.Run(name, func(t *testing.T) {
			p := packet{from: container, to: gateway, src: f.local, dst: f.behind, payload: []byte("hello")}
			out := h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "sent")
			p.ttl = 63
			if want := p.bytes(); !bytes.Equal(out, want) {
				t.Errorf("sent, -want +got:\n%s", diff(want, out))
			}
			p = packet{from: peerHost, to: h.mac, src: f.behind, dst: f.local, trailer: make([]byte, 6)}
			if f.host.Is6() {
				p.trailer = nil
			}
			out = h.expect(t, h.kernel.FromWire, h.underlay, p.bytes(), 0, "received")
			p.ttl, p.from, p.to = 63, gateway, container
			if want := p.bytes(); !bytes.Equal(out, want) {
				t.Errorf("received, -want +got:\n%s", diff(want, out))
			}
			p = packet{from: peerHost, to: h.mac, src: f.remote, dst: f.local}
			h.expect(t, h.kernel.FromWire, h.underlay, p.bytes(), 0, "source") // that peer has a tunnel
		})
	}
}

func TestFromWire(t *testing.T) {
	h := newHost(t)
	for name, f := range families {
		for _, test := range []struct {
			change string
			way    string
			p      func(inner, outer *packet)
		}{
			{"none", "received", func(inner, outer *packet) {}},
			{"UDP", "received", func(inner, outer *packet) { inner.proto = protoUDP }},
			{"from the inner side of a NAT", "received", func(inner, outer *packet) { inner.src, outer.src = f.far, f.direct }},
			{"from the outer side of a NAT", "source", func(inner, outer *packet) { inner.src, outer.src = f.far, f.natted }},
			{"from another host", "source", func(inner, outer *packet) { outer.src = f.natted }},
			{"from no peer's container", "source", func(inner, outer *packet) { inner.src = f.local.Next().Next() }},
			{"of a peer without a tunnel", "source", func(inner, outer *packet) { inner.src, outer.src = f.behind, f.direct }},
			{"to a container that is not there", "elsewhere", func(inner, outer *packet) { inner.dst = f.local.Next().Next() }},
			{"of a policy", "container", func(inner, outer *packet) { inner.dst = f.policed }},
			{"SYN", "first", func(inner, outer *packet) { inner.flags = flagSYN }},
			{"SYN-ACK", "first", func(inner, outer *packet) { inner.flags = flagSYN | flagACK }},
			{"TTL 1", "ttl", func(inner, outer *packet) { inner.ttl = 1 }},
			{"ICMP", "protocol", func(inner, outer *packet) { inner.proto = protoICMP }},
			{"options or extension headers", "protocol", func(inner, outer *packet) { inner.options = []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0} }},
			{"CE", "congested", func(inner, outer *packet) { outer.tos = 3 }},
			{"outer ECT(1), inner ECT(0)", "congested", func(inner, outer *packet) { outer.tos, inner.tos = 1, 2 }},
			{"outer ECT(1), inner ECT(1)", "received", func(inner, outer *packet) { outer.tos, inner.tos = 1, 1 }},
			{"outer ECT(0), inner ECT(1)", "received", func(inner, outer *packet) { outer.tos, inner.tos = 2, 1 }},
			{"outer ECT(1), inner none", "received", func(inner, outer *packet) { outer.tos = 1 }},
			{"outer shorter than it says", "elsewhere", func(inner, outer *packet) { outer.length = 1 }},
			{"outer longer than it says", "elsewhere", func(inner, outer *packet) { outer.length = -1 }},
			{"to another MAC", "elsewhere", func(inner, outer *packet) { inner.to = peerVTEP }},
			{"shorter than it says", "protocol", func(inner, outer *packet) { inner.length = 1 }},
			{"larger than the container's link takes", "gone", func(inner, outer *packet) { inner.payload = make([]byte, 1450) }},
			{"another port", "", func(inner, outer *packet) { outer.dport = 4789 }},
			{"another address", "", func(inner, outer *packet) { outer.dst = f.peer }},
			{"not for this host's card", "", func(inner, outer *packet) { outer.to = peerHost }},
		} {
			t.Run(name+"/"+test.change, func(t *testing.T) {
				inner := packet{from: peerVTEP, to: vtep, src: f.remote, dst: f.local, sport: 80, dport: 4000, payload: []byte("hello")}
				outer := packet{from: peerHost, to: h.mac, src: f.peer, dst: f.host, sport: 40000, dport: 8472}
				test.p(&inner, &outer)
				out := h.expect(t, h.kernel.FromWire, h.underlay, inner.in(outer, 1).bytes(), 0, test.way)
				if inner.from, inner.to, inner.ttl = gateway, container, 63; test.way != "received" {
					return
				}
				if want := inner.bytes(); !bytes.Equal(out, want) {
					t.Errorf("-want +got:\n%s", diff(want, out))
				}
			})
		}
		inner := packet{from: peerVTEP, to: vtep, src: f.remote, dst: f.local}
		outer := packet{from: peerHost, to: h.mac, src: f.peer, dst: f.host, dport: 8472}
		for change, edit := range map[string]func(vxlan []byte){
			"another VNI":            func(vxlan []byte) { vxlan[6] = 2 },
			"a flag more":            func(vxlan []byte) { vxlan[0] = 0x88 },
			"reserved bits":          func(vxlan []byte) { vxlan[7] = 1 },
			"another inner type":     func(vxlan []byte) { vxlan[8+13]++ },
			"an inner tag of a VLAN": func(vxlan []byte) { copy(vxlan[8+12:], []byte{0x81, 0}) },
		} {
			t.Run(name+"/"+change, func(t *testing.T) {
				data := inner.in(outer, 1).bytes()
				edit(data[len(data)-len(inner.bytes())-8:])
				h.expect(t, h.kernel.FromWire, h.underlay, data, 0, "elsewhere")
			})
		}
		t.Run(name+"/an outer header of another version", func(t *testing.T) {
			data := inner.in(outer, 1).bytes()
			data[14] ^= 0x10
			h.expect(t, h.kernel.FromWire, h.underlay, data, 0, "")
		})
		t.Run(name+"/tagged by a VLAN", func(t *testing.T) {
			data := inner.in(outer, 1).bytes()
			data = slices.Insert(data, 12, 0x81, 0, 0, 5)
			h.expect(t, h.kernel.FromWire, h.underlay, data, 0, "")
		})
	}
	f := families["IPv4"]
	inner := packet{from: peerVTEP, to: vtep, src: f.remote, dst: f.local}
	for change, outer := range map[string]packet{
		"outer fragment": {fragment: 0x2000}, "outer options": {options: []byte{1, 1, 1, 1}},
	} {
		t.Run(change, func(t *testing.T) {
			outer.from, outer.to, outer.src, outer.dst, outer.dport = peerHost, h.mac, f.peer, f.host, 8472
			h.expect(t, h.kernel.FromWire, h.underlay, inner.in(outer, 1).bytes(), 0, "")
		})
	}
	t.Run("inner fragment", func(t *testing.T) {
		inner.fragment = 0x2000
		outer := packet{from: peerHost, to: h.mac, src: f.peer, dst: f.host, dport: 8472}
		h.expect(t, h.kernel.FromWire, h.underlay, inner.in(outer, 1).bytes(), 0, "protocol")
	})
	t.Run("the container's link is gone", func(t *testing.T) {
		inner.fragment = 0
		outer := packet{from: peerHost, to: h.mac, src: f.peer, dst: f.host, dport: 8472}
		data := inner.in(outer, 1).bytes()
		h.expect(t, h.kernel.FromWire, h.underlay, data, 0, "received")
		nstest.Sh(t, h.cfg.Namespace, "ip link del c0")
		h.expect(t, h.kernel.FromWire, h.underlay, data, 0, "gone")
	})
}

// What is said holds when the call returns.
func TestEffective(t *testing.T) {
	h := newHost(t)
	f := families["IPv4"]
	p := packet{from: container, to: gateway, src: f.local, dst: f.remote}
	c := Container{Index: h.veth, MAC: container, Gateway: gateway, Addrs: []netip.Addr{f.local}}
	own, peers := h.own, []Claim{{"a", slices.Collect(func(yield func(Peer) bool) {
		for _, e := range h.peers {
			if !yield(e.wanted[0].peer) {
				return
			}
		}
	})}}
	for _, step := range []struct {
		name string
		do   func()
		way  string
	}{
		{"as it is", func() {}, "sent"},
		{"slow by a policy", func() { h.Slow([]netip.Addr{f.local}, true) }, "container"},
		{"still, with the container said again", func() { h.SetContainers([]Container{c}) }, "container"},
		{"fast again", func() { h.Slow([]netip.Addr{f.local}, false) }, "sent"},
		{"slow by its link", func() { h.Use("", false, map[int]string{h.veth: "a shaper"}) }, "container"},
		{"off", func() { h.Use("foreign rules", false, nil) }, ""},
		{"on", func() { h.Use("", false, nil) }, "sent"},
		{"no peers", func() { h.Replace(nil) }, "elsewhere"},
		{"peers", func() { h.Update(peers) }, "sent"},
		{"a peer gone", func() { h.Update([]Claim{{Owner: "a"}}) }, "elsewhere"},
		{"peers again", func() { h.Replace(peers) }, "sent"},
		{"no underlay", func() { h.SetOwn(Own{}) }, ""},
		{"another VNI", func() { o := own; o.Tunnels = []Tunnel{{Addr: f.host, VNI: 2}}; h.SetOwn(o) }, "elsewhere"},
		{"own end again", func() { h.SetOwn(own) }, "sent"},
		{"container gone", func() { h.SetContainers(nil) }, "source"},
		{"on another link", func() { d := c; d.Index = h.underlay; h.SetContainers([]Container{d}) }, "source"},
		{"container again", func() { h.SetContainers([]Container{c}) }, "sent"},
		{"two of one address", func() { d := c; d.Index++; h.SetContainers([]Container{c, d}) }, "source"},
		{"one of them", func() { h.SetContainers([]Container{c}) }, "sent"},
		{"tracked, and a TCP connection unknown", func() { h.Use("", true, nil) }, "sent"},
		{"tracked, and a UDP connection unknown", func() { p.proto = protoUDP }, "first"},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do()
			h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, step.way)
		})
	}
}

// Where a gateway is between, the packet takes the route's next hop, and the slow way if there is none.
func TestBehindGateway(t *testing.T) {
	h := newHost(t)
	nstest.Sh(t, h.cfg.Namespace, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1") // as where there are containers
	for name, f := range families {
		peer := Peer{Subnet: netip.PrefixFrom(f.remote, f.remote.BitLen()-8), MAC: peerVTEP, VNI: 1, Port: 8472, ZeroChecksum: true}
		via := "192.0.2.254"
		if peer.Host = addr("198.51.100.1"); f.remote.Is6() {
			peer.Host, via = addr("2001:db8:1::1"), "2001:db8::fe"
		}
		h.Replace([]Claim{{"a", []Peer{peer}}})
		p := packet{from: container, to: gateway, src: f.local, dst: f.remote, payload: make([]byte, 1000)}
		for _, step := range []struct{ name, script, way string }{
			{"no route", ":", "gone"},
			{"a route", "ip route add $DST via $VIA", "sent"},
			{"a narrow one", "ip route replace $DST via $VIA mtu 1280", "sent"},
			{"one too narrow", "ip route replace $DST via $VIA mtu lock 1000", "gone"},
			{"none any more", "ip route del $DST", "gone"},
		} {
			if f.remote.Is6() && step.name == "one too narrow" {
				continue // none is, in IPv6
			}
			t.Run(name+"/"+step.name, func(t *testing.T) {
				nstest.Sh(t, h.cfg.Namespace, strings.NewReplacer("$DST", peer.Host.String(), "$VIA", via).Replace(step.script))
				h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, step.way)
			})
		}
	}
}

// A kernel that does not let programs look at connections may be fast where nothing tracks them.
func TestWithoutConntrack(t *testing.T) {
	h := newHost(t)
	var o objects
	if err := o.loadWith(0); err != nil {
		t.Fatal(err)
	}
	h.kernel = o
	h.SetOwn(h.own)
	if s := h.Status(); s.Off != "" {
		t.Errorf("off: %s", s.Off)
	}
	h.Use("", true, nil)
	if s := h.Status(); !strings.Contains(s.Off, "Linux 6.1") {
		t.Errorf("off: %q", s.Off)
	}
}

// As many peers as there may be take no time that anybody waits for.
func TestManyPeers(t *testing.T) {
	h := newHost(t)
	var all []Claim
	for i := range 60_000 {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(64 + i>>14), byte(i >> 6), byte(i << 2)}), 30)
		all = append(all, Claim{fmt.Sprint(i), []Peer{{Subnet: subnet, Host: addr("192.0.2.2"), MAC: peerVTEP, VNI: 1, Port: 8472, Near: true}}})
	}
	for _, step := range []struct {
		name  string
		do    func()
		peers int
	}{
		{"all come", func() { h.Replace(all) }, len(all)},
		{"all again", func() { h.Replace(all) }, len(all)},
		{"one goes", func() { h.Update([]Claim{{Owner: "7"}}) }, len(all) - 1},
		{"all go", func() { h.Replace(nil) }, 0},
	} {
		begin := time.Now()
		step.do()
		took := time.Since(begin)
		t.Logf("%s: %v", step.name, took)
		if took > 5*time.Second { // a twentieth of one, alone on a machine
			t.Errorf("%s: took %v", step.name, took)
		}
		if s := h.Status(); s.Peers != step.peers {
			t.Errorf("%s: %d peers", step.name, s.Peers)
		}
	}
}
