package etcdstore

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/overlayd/overlayd/subnet"
)

// outsidePeer is the lease of a laptop in a network of wireguard, which may be behind an address.
func outsidePeer(name string, addrs ...string) subnet.Lease {
	l := advert(addrs...)
	l.Host, l.Backend = name, "wireguard"
	if len(addrs) == 0 {
		l.Endpoints = []subnet.Endpoint{{}}
	}
	l.Endpoints[0].Data = json.RawMessage(`{"PublicKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","Port":51820}`)
	return l
}

// A peer outside the network has a subnet that no host takes: not one behind the same address, as flannel's leases are taken over,
// and not one that remembers to have had it.
func TestOutsidePeerStays(t *testing.T) {
	t.Parallel()
	for name, peer := range map[string]subnet.Lease{"anywhere": outsidePeer("laptop"), "at the host's address": outsidePeer("nfs", "192.0.2.1")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", network)
			s := openStore(t, etcd.Endpoint())
			l := leaseFor(peer, halves(7, 7)[:1])
			l.Endpoints[0].Data = peer.Endpoints[0].Data
			if err := s.Reserve(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			before, lease := etcd.get(t, subnets+l.Key())
			if lease != 0 {
				t.Errorf("it ends with lease %x", lease)
			}
			h := join(t, s, JoinConfig{HostID: "h1", Previous: l.Subnets()}, "192.0.2.1")
			own := h.awaitHeld("").Own.Record
			if own.Key() == l.Key() {
				t.Error("a host has it")
			}
			h.awaitPeers(l.Key())
			if now, _ := etcd.get(t, subnets+l.Key()); now != before {
				t.Errorf("it is %s, was %s", now, before)
			}
			// Nor does it take what is another's, be it at its own address.
			again := leaseFor(peer, own.Subnets())
			again.Endpoints[0].Data = peer.Endpoints[0].Data
			if err := s.Reserve(t.Context(), again); !errors.Is(err, ErrTaken) {
				t.Errorf("Reserve() of a host's subnet = %v", err)
			}
			if err := s.Reserve(t.Context(), l); !errors.Is(err, ErrTaken) {
				t.Errorf("Reserve() again = %v", err)
			}
		})
	}
}
