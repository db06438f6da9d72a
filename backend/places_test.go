package backend

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend/underlay"
	"github.com/overlayd/overlayd/subnet"
)

// What a network must leave alone, and what is of the overlay itself or of no concern.
func TestCovers(t *testing.T) {
	t.Parallel()
	on := func(prefix, link string, containers bool) underlay.Connected {
		return underlay.Connected{Prefix: netip.MustParsePrefix(prefix), Link: link, Containers: containers}
	}
	own := []netip.Prefix{netip.MustParsePrefix("10.5.64.0/20"), netip.MustParsePrefix("fd00:5:0:7::/64")}
	const dual = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}`
	for name, tt := range map[string]struct {
		config string
		on     underlay.Connected
		want   string // empty: it is not in the way
	}{
		"the same as a wire":                {dual, on("10.5.0.0/16", "eth1", false), "the network 10.5.0.0/16 covers 10.5.0.0/16 on eth1"},
		"wider than a wire":                 {dual, on("10.5.9.0/24", "eth1", false), "covers 10.5.9.0/24 on eth1"},
		"a part of a wire":                  {dual, on("10.0.0.0/8", "eth1", false), "covers 10.0.0.0/8 on eth1"},
		"a wire of IPv6":                    {dual, on("fd00:5:0:9::/64", "eth1", false), "the network fd00:5::/48 covers fd00:5:0:9::/64 on eth1"},
		"a wire with the own lease":         {dual, on("fd00:5:0:7::/64", "eth1", false), "on eth1"},
		"a wire elsewhere":                  {dual, on("10.6.0.0/16", "eth1", false), ""},
		"a bridge with the own lease":       {dual, on("10.5.64.0/20", "docker0", true), ""},
		"a bridge with a part of it":        {dual, on("10.5.65.0/28", "br1", true), ""},
		"a bridge with a lease of before":   {dual, on("10.5.9.0/24", "cni0", true), ""},
		"a container's link":                {dual, on("10.5.9.7/32", "veth1", true), ""},
		"a bridge too large for a lease":    {dual, on("10.5.0.0/20", "br1", true), "covers 10.5.0.0/20 on br1"},
		"a bridge by which etcd is reached": {dual, on("10.5.3.0/24", "br0", true), "covers etcd at 10.5.3.7"},
		"a bridge around the network":       {dual, on("10.0.0.0/8", "br0", true), "covers 10.0.0.0/8 on br0"},
		"its own gateway":                   {`{"Network":"192.0.2.0/24"}`, underlay.Connected{}, "covers the gateway 192.0.2.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, err := subnet.ParseNetwork([]byte(tt.config))
			if err != nil {
				t.Fatal(err)
			}
			around := underlay.Around{Gateways: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Connected: []underlay.Connected{tt.on}}
			if !tt.on.Prefix.IsValid() {
				around.Connected = nil
			}
			var addrs []Place
			if tt.on.Link == "br0" && tt.on.Prefix.Bits() == 24 {
				addrs = []Place{At(netip.MustParseAddr("10.5.3.7"), "etcd at")}
			}
			err = Covers(n, Places(around, addrs, n, own))
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}
