package backend

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// FuzzBackend has anybody write the options of a network and the data of a peer: what is accepted is a plan whose
// objects lead to its subnet and nowhere else.
func FuzzBackend(f *testing.F) {
	f.Add("vxlan", []byte(`{"Type":"vxlan","VNI":7,"DirectRouting":true}`), []byte(`{"VNI":1,"VtepMAC":"5e:96:93:0f:50:82"}`), true)
	f.Add("vxlan", []byte(`{"MTU":1400,"Port":4789}`), []byte(`{"VtepMAC":"5e:96:93:0f:50:82"}`), false)
	f.Add("vxlan", []byte(nil), []byte(`{"VNI":16777216,"VtepMAC":"ff:ff:ff:ff:ff:ff"}`), false)
	f.Add("host-gw", []byte(`{"Type":"host-gw"}`), []byte(nil), true)
	f.Fuzz(func(t *testing.T, kind string, options, data []byte, near bool) {
		b, err := New(subnet.Backend{Type: kind, Options: json.RawMessage(options)}, testHost())
		if err != nil {
			return
		}
		peer := subnet.Endpoint{
			Subnet: netip.MustParsePrefix("10.5.9.0/24"), PublicIP: netip.MustParseAddr("172.30.0.9"), Data: json.RawMessage(data),
		}
		path, objs, err := b.Peer(ownEndpoint(subnet.IPv4), peer, near)
		if (err == nil) != (path != "" && len(objs) > 0) {
			t.Fatalf("path %q with %d objects, and the error %v", path, len(objs), err)
		}
		routes := 0
		for _, o := range objs {
			if r, ok := o.(kernel.Route); ok && r.Dst == peer.Subnet {
				routes++
			} else if ok {
				t.Errorf("a route to %s", r.Dst)
			}
		}
		if err == nil && routes != 1 {
			t.Errorf("%d routes to the peer, want one", routes)
		}
		if b.MTU() < 576 { // RFC 791
			t.Errorf("containers have an MTU of %d", b.MTU())
		}
	})
}
