package fastpath

import (
	"bytes"
	"net/netip"
	"testing"
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
}
