package agent

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

var comparable = cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})

// peers are what an owner has.
func (f *fakeFast) peers(owner string) []fastpath.Peer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.claims[owner])
}

// The fast path follows leases, by the objects that they come to in the kernel.
func TestFastPathFollowsLeases(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	r.kernel.far = map[netip.Addr]bool{addr("172.30.9.12"): true, addr("203.0.113.9"): true}
	r.start(t)
	natted := record("10.5.75.0/24", "203.0.113.9", "vxlan", 0x14)
	natted.Endpoints[0].Data = json.RawMessage(`{"VNI":7,"VtepMAC":"02:00:00:00:00:14","Port":4790,"Source":"172.30.0.14","ZeroChecksum":true}`)
	near := record("10.5.74.0/24", "172.30.0.13", "vxlan", 0x13)
	r.member.tell(news(t, directConfig, map[string]*subnet.Record{
		"10.5.73.0-24": record("10.5.73.0/24", "172.30.9.12", "vxlan", 0x12), "10.5.74.0-24": near, "10.5.75.0-24": natted,
		"10.5.76.0-24": record("10.5.76.0/24", "172.30.0.15", "ipsec", 0), "10.5.77.0-24": {Lease: subnet.Lease{Endpoints: []subnet.Endpoint{{Subnet: prefix("10.5.77.0/24")}}}},
	}))
	eventually(t, "the fast path knows the host's end", func() bool { r.fast.mu.Lock(); defer r.fast.mu.Unlock(); return r.fast.end.Underlay != 0 })
	want := FastEnd{
		Own: fastpath.Own{Underlay: testIndex, MTU: 1450, Subnets: []netip.Prefix{prefix("10.5.72.0/24")}, Tunnels: []fastpath.Tunnel{
			{Addr: addr("172.30.0.11"), Port: 8472, VNI: 1, MAC: kernel.MAC{2, 1}, Link: "overlay.1"},
		}},
		Link: "eth0", Direct: true, Networks: []netip.Prefix{prefix("10.5.0.0/16")},
	}
	if diff := cmp.Diff(want, r.fast.end, comparable); diff != "" {
		t.Errorf("the host's end (-want +got):\n%s", diff)
	}
	r.fast.mu.Lock()
	diff := cmp.Diff(map[string][]fastpath.Peer{
		"10.5.73.0-24": {{Subnet: prefix("10.5.73.0/24"), Host: addr("172.30.9.12"), MAC: kernel.MAC{2, 0, 0, 0, 0, 0x12}, VNI: 1, Port: 8472}},
		"10.5.74.0-24": {{Subnet: prefix("10.5.74.0/24"), Host: addr("172.30.0.13"), Near: true}},
		"10.5.75.0-24": {{Subnet: prefix("10.5.75.0/24"), Host: addr("203.0.113.9"), Source: addr("172.30.0.14"), MAC: kernel.MAC{2, 0, 0, 0, 0, 0x14},
			VNI: 7, Port: 4790, ZeroChecksum: true}},
	}, r.fast.claims, comparable)
	r.fast.mu.Unlock()
	if diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}

	r.member.tell(news(t, directConfig, map[string]*subnet.Record{"10.5.73.0-24": nil, "10.5.74.0-24": record("10.5.74.0/24", "172.30.0.66", "vxlan", 0x13)}))
	eventually(t, "one is gone, and one moved", func() bool {
		p := r.fast.peers("10.5.74.0-24")
		return r.fast.peers("10.5.73.0-24") == nil && len(p) == 1 && p[0].Host == addr("172.30.0.66")
	})

	// One that is loaded later, because it was switched off, gets all.
	r.fast.mu.Lock()
	r.fast.claims, r.fast.empty = map[string][]fastpath.Peer{}, true
	r.fast.mu.Unlock()
	r.fast.loaded <- struct{}{}
	eventually(t, "it knows all again", func() bool { return r.fast.peers("10.5.75.0-24") != nil })
}

// What goes is taken out of the fast path before the kernel hears of it, what changes too, and what comes is put in after.
func TestFastPathBesideTheKernel(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.start(t)
	const gone, moves = "10.5.73.0-24", "10.5.74.0-24"
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{gone: record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12), moves: record("10.5.74.0/24", "172.30.0.13", "vxlan", 0x13)}))
	eventually(t, "both are fast", func() bool { return r.fast.peers(gone) != nil && r.fast.peers(moves) != nil })
	if p := r.fast.peers(moves)[0]; !p.Near || p.MAC == (kernel.MAC{}) {
		t.Errorf("%+v, want a peer on the underlay's link, behind a tunnel", p)
	}
	r.kernel.mu.Lock()
	r.kernel.before = func() {
		if r.fast.peers(gone) != nil || r.fast.peers(moves) != nil {
			t.Error("what the kernel is about to change is fast")
		}
	}
	r.kernel.mu.Unlock()
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{gone: nil, moves: record("10.5.74.0/24", "172.30.0.66", "vxlan", 0x13)}))
	eventually(t, "the one that moved is fast again", func() bool { return r.fast.peers(moves) != nil && r.fast.peers(gone) == nil })
}

// Packets with the policy of a group in them, and those of a host whose underlay is any link, are not for the fast path.
func TestFastPathLeavesOut(t *testing.T) {
	t.Parallel()
	network, err := subnet.ParseNetwork([]byte(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","GBP":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	host := testHost("172.30.0.11")
	host.Unbound = true
	p, err := newPlanner(network, host)
	if err != nil {
		t.Fatal(err)
	}
	own, peer := record("10.5.72.0/24", "172.30.0.11", "vxlan", 0x11).Lease, record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12).Lease
	_, objs, err := p.peer(own, peer, func(netip.Addr) bool { return false }, false)
	if err != nil {
		t.Fatal(err)
	}
	if e := p.end(nil, nil); e.Underlay != 0 || len(e.Tunnels) != 0 {
		t.Errorf("the host's end is %+v", e)
	}
	if peers := p.fast(objs, peer, func(netip.Addr) bool { return false }); len(peers) != 1 || peers[0] != (fastpath.Peer{Subnet: peer.Endpoints[0].Subnet}) {
		t.Errorf("peers %+v", peers)
	}
}
