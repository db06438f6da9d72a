package agent

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// named is the record of a peer that names a VNI.
func named(i, vni int) *subnet.Record {
	r := record(fmt.Sprintf("10.5.%d.0/24", 100+i), fmt.Sprintf("172.30.0.%d", 100+i), "vxlan", byte(0x20+i))
	r.Endpoints[0].Data = json.RawMessage(fmt.Sprintf(`{"VNI":%d,"VtepMAC":"02:00:00:00:00:%02x"}`, vni, 0x20+i))
	return r
}

// A lease can name any VNI, and each takes a link: those of the network, now and before, are always there.
func TestTooManyVNIs(t *testing.T) {
	t.Parallel()
	network, err := subnet.ParseNetwork([]byte(vxlanConfig))
	if err != nil {
		t.Fatal(err)
	}
	host := testHost("172.30.0.11")
	former := kernel.VXLAN{Name: "overlay.50", VNI: 50, Port: 8472, Local: netip.MustParseAddr("172.30.0.11"), Underlay: "eth0"}
	host.Former = []kernel.Object{former}
	p, err := newPlanner(network, host)
	if err != nil {
		t.Fatal(err)
	}
	own := record("10.5.72.0/24", "172.30.0.11", "vxlan", 0x11).Lease
	links := map[string]bool{}
	for i, tt := range []struct {
		vni  int
		fits bool
	}{
		{60, true}, {61, true}, {62, true}, {63, true}, {64, true}, {65, true}, {66, true}, {67, true},
		{77, false}, {60, true}, {1, true}, {50, true}, {78, false}, {67, true},
	} {
		_, objs, err := p.peer(own, named(i, tt.vni).Lease, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		objs, err = p.admit(objs, p.self(own))
		if (err == nil) != tt.fits || err != nil && !strings.Contains(err.Error(), "needs one more link than the 8 that peers may need") {
			t.Errorf("peer %d names VNI %d: %v, want it planned: %t", i, tt.vni, err, tt.fits)
		}
		for _, o := range objs {
			if l, ok := o.(kernel.VXLAN); ok {
				links[l.Name] = true
			}
		}
	}
	if len(links) != 8+1 {
		t.Errorf("%d links, want 9: %v", len(links), links)
	}
}

// It is no chance which peers are refused at a start.
func TestTooManyVNIsAtAStart(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.start(t)
	peers := map[string]*subnet.Record{}
	for i := range 20 {
		peer := named(i, 60+i)
		peers[peer.Key()] = peer
	}
	r.member.tell(news(t, vxlanConfig, peers))
	eventually(t, "the host is ready", func() bool { return r.Status().Ready })
	for i, p := range r.Status().Peers {
		if refused := p.Error != ""; refused != (i >= mostLinks) {
			t.Errorf("%s: error %q, want one for all but the first eight", p.Subnets, p.Error)
		}
	}
}
