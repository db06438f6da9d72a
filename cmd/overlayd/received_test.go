package main

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// A wireguard link that flanneld made and the daemon took over is the host's, and goes with the rest.
func TestReceivedByAnAdoptedLink(t *testing.T) {
	t.Parallel()
	key := kernel.NewSecret()
	last := leasecache.View{
		Config: []byte(`{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}`),
		Last: &subnet.Record{Lease: subnet.Lease{Backend: "wireguard", Endpoints: []subnet.Endpoint{
			{Subnet: netip.MustParsePrefix("10.5.7.0/24"), PublicIP: netip.MustParseAddr("192.0.2.1")}}}},
	}
	present := []kernel.Existing{{Link: kernel.WireGuard{Name: "flannel-wg", Private: key, Port: 51820}}}
	for _, o := range received(last, backend.Host{WireGuard: key, Handover: backend.Handover{Present: present}}) {
		if l, ok := o.(kernel.WireGuard); ok && l.Name == "flannel-wg" {
			return
		}
	}
	t.Error("flannel-wg stays")
}
