package fastpath

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// An IPv6 header may bear addresses that are IPv4's, mapped; in the maps those are the IPv4 containers'.
func TestMappedInIPv6Header(t *testing.T) {
	h := newHost(t)
	f := families["IPv4"]
	mapped := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
	p := packet{from: container, to: gateway, src: mapped(f.local), dst: mapped(f.remote)}
	verdict, out, way := h.run(t, h.kernel.FromContainer, h.veth, p.bytes(), 0)
	if verdict != slow || !bytes.Equal(out, p.bytes()) {
		t.Errorf("sent: verdict %d, counted as %q", verdict, way)
	}
	f6 := families["IPv6"]
	p = packet{from: peerVTEP, to: vtep, src: mapped(f.remote), dst: mapped(f.local)}
	outer := packet{from: peerHost, to: h.mac, src: mapped(f.peer), dst: f6.host, dport: 8472}
	verdict, _, way = h.run(t, h.kernel.FromWire, h.underlay, p.in(outer, 1).bytes(), 0)
	if verdict != slow {
		t.Errorf("received: verdict %d, counted as %q", verdict, way)
	}
}

// What is inside a peer's subnet, and is another's, is never that peer's, even if the other one is not fast.
func TestPrefixInPrefix(t *testing.T) {
	h := newHost(t)
	f := families["IPv4"]
	to := func(subnet string, vni uint32) Peer {
		return Peer{Subnet: netip.MustParsePrefix(subnet), Host: f.peer, MAC: peerVTEP, VNI: vni, Port: 8472, Near: true}
	}
	inner := to("10.1.3.0/24", 1)
	inner.Host = f.natted
	own := h.own
	own.Subnets = []netip.Prefix{netip.MustParsePrefix("10.1.1.1/24")}
	h.SetOwn(own)
	h.Replace([]Claim{{"wide", []Peer{to("10.1.0.0/16", 1)}}, {"inner", []Peer{inner}}, {"foreign", []Peer{to("10.1.4.0/24", 2)}}})
	p := packet{from: container, to: gateway, src: f.local, dst: f.remote}
	out := h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "sent")
	if got := netip.AddrFrom4([4]byte(out[30:34])); got != f.peer {
		t.Errorf("of the wide one: to %v, want %v", got, f.peer)
	}
	p.dst = f.far
	out = h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "sent")
	if got := netip.AddrFrom4([4]byte(out[30:34])); got != f.natted {
		t.Errorf("of the one inside: to %v, want %v", got, f.natted)
	}
	p.dst = f.behind
	if verdict, _, way := h.run(t, h.kernel.FromContainer, h.veth, p.bytes(), 0); verdict != slow {
		t.Errorf("of the one inside that is not fast: verdict %d, counted as %q", verdict, way)
	}
	p.dst = addr("10.1.1.1")
	if verdict, _, way := h.run(t, h.kernel.FromContainer, h.veth, p.bytes(), 0); verdict != slow {
		t.Errorf("to an address of this host's own, that is inside: verdict %d, counted as %q", verdict, way)
	}
	outer := packet{from: peerHost, to: h.mac, src: f.peer, dst: f.host, dport: 8472}
	for from, want := range map[netip.Addr]string{f.remote: "received", f.far: "source", f.behind: "elsewhere", addr("10.1.1.1"): "elsewhere"} {
		in := packet{from: peerVTEP, to: vtep, src: from, dst: f.local}
		h.expect(t, h.kernel.FromWire, h.underlay, in.in(outer, 1).bytes(), 0, want)
	}
	h.Update([]Claim{{"inner", []Peer{{Subnet: inner.Subnet}}}})
	p.dst = f.far
	h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "elsewhere")
	h.Update([]Claim{{Owner: "inner"}})
	h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "sent")
}

// Where the vxlan link is not there, nothing is sent into it.
func TestOverlayLinkUnknown(t *testing.T) {
	h := newHost(t)
	f := families["IPv6"]
	own := h.own
	own.Tunnels = append([]Tunnel(nil), own.Tunnels...)
	for i := range own.Tunnels {
		own.Tunnels[i].Link = "nonesuch"
	}
	h.SetOwn(own)
	p := packet{from: container, to: gateway, src: f.local, dst: f.far}
	h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "gone")
	for i := range own.Tunnels {
		own.Tunnels[i].Link = "overlay6.1"
	}
	h.SetOwn(own)
	h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "sent")
	nstest.Sh(t, h.cfg.Namespace, "ip link set overlay6.1 down")
	h.SetOwn(own)
	h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "gone")
}

// With a subnet that the map of peers does not take nothing is fast, until it does.
func TestPeerNotTaken(t *testing.T) {
	h := newHost(t)
	f := families["IPv4"]
	full, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: 20, ValueSize: 48, MaxEntries: 1, Flags: unix.BPF_F_NO_PREALLOC})
	if err != nil {
		t.Fatal(err)
	}
	real := h.kernel.Peers
	h.kernel.Peers = full
	h.Update([]Claim{{"b", []Peer{{Subnet: netip.MustParsePrefix("10.7.1.0/24")}, {Subnet: netip.MustParsePrefix("10.7.2.0/24")}}}})
	p := packet{from: container, to: gateway, src: f.local, dst: f.remote}
	h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "")
	if off := h.Status().Off; off == "" {
		t.Error("no reason is told")
	}
	h.kernel.Peers = real
	h.hush(t)
	attached := map[int]attachment{}
	h.attachAll(attached)
	defer h.detach(attached)
	h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "sent")
}
