package etcdstore

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// A host takes the lease that is reserved for it, by its id or its address, in each family, also while it has another;
// the key never expires, and the host's restarts do not change that.
func TestReservationIsHonoured(t *testing.T) {
	t.Parallel()
	v4, dual := halves(7, 7)[:1], halves(7, 9)
	for name, tc := range map[string]struct {
		config string
		lease  subnet.Lease // to reserve; its subnets are these
		value  string       // or as flannel's documentation has an operator write it
		of     []netip.Prefix
	}{
		"by id":                  {config: network, lease: subnet.Lease{HostID: "h1"}, of: v4},
		"by address":             {config: network, lease: advert("192.0.2.1"), of: v4},
		"flannel's":              {config: network, value: `{"PublicIP":"192.0.2.1"}`, of: v4},
		"flannel's with backend": {config: network, value: flannelValue("192.0.2.1"), of: v4},
		"dual by id":             {config: dualNetwork, lease: subnet.Lease{HostID: "h1"}, of: dual},
		"dual by address":        {config: dualNetwork, lease: advert("192.0.2.1", "2001:db8::1"), of: dual},
		"flannel's dual":         {config: dualNetwork, value: `{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}`, of: dual},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", tc.config)
			s := openStore(t, etcd.Endpoint())
			first := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1", "2001:db8::1")
			before := first.awaitHeld("").Own.Record.Key()
			first.stop()
			key := keyOf(tc.of)
			if tc.value != "" {
				etcd.put(t, subnets+key, tc.value)
			} else {
				l := leaseFor(tc.lease, tc.of)
				l.Backend = ""
				for i := range l.Endpoints {
					l.Endpoints[i].Data = nil
				}
				if err := s.Reserve(t.Context(), l); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				h := join(t, s, JoinConfig{HostID: "h1", Previous: mustSubnets(t, before)}, "192.0.2.1", "2001:db8::1")
				u := h.await("has what is reserved", func(u Update) bool { return u.Own.State == Held && u.Own.Record.Key() == key })
				if !u.Own.Expires.IsZero() || u.Own.Record.HostID != "h1" {
					t.Errorf("own: %+v", u.Own)
				}
				if _, id := etcd.get(t, subnets+key); id != 0 {
					t.Errorf("it expires with lease %x", id)
				}
				h.stop()
			}
		})
	}
}

func mustSubnets(t *testing.T, key string) []netip.Prefix {
	t.Helper()
	p, err := subnet.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// In a network of four subnets of which three are reserved, the fourth is all that others get.
func TestReservedSubnetIsGivenToNobodyElse(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]string{
		"IPv4":       `{"Network":"10.5.0.0/22","SubnetMin":"10.5.0.0","SubnetLen":24}`,
		"dual stack": `{"Network":"10.5.0.0/22","SubnetMin":"10.5.0.0","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fd00:5::/62","IPv6SubnetMin":"fd00:5::"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", config)
			s := openStore(t, etcd.Endpoint())
			n := mustNetwork(t, config)
			var reserved []subnet.Lease
			for i, tc := range []subnet.Lease{{HostID: "away"}, advert("192.0.2.77", "2001:db8::77"), {HostID: "away too"}} {
				l := leaseFor(subnet.Lease{HostID: tc.HostID, Endpoints: tc.Endpoints}, n.Slot(uint64(i)))
				if err := s.Reserve(t.Context(), l); err != nil {
					t.Fatal(err)
				}
				reserved = append(reserved, l)
			}
			a := join(t, s, JoinConfig{HostID: "h1", Previous: n.Slot(0)}, "192.0.2.1", "2001:db8::1")
			a.awaitHeld(keyOf(n.Slot(3)))
			b := join(t, s, JoinConfig{HostID: "h2", Previous: n.Slot(1)}, "192.0.2.2", "2001:db8::2")
			b.await("finds none", func(u Update) bool { return strings.Contains(u.Own.Reason, "out of subnets") })
			listing, err := s.Leases(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range listing.Records {
				if r.Key() == reserved[1].Key() {
					if err := s.Release(t.Context(), r); err != nil {
						t.Fatal(err)
					}
				}
			}
			b.awaitHeld(reserved[1].Key())
		})
	}
}

// Who reserves what a host has keeps it for that host, named by its id or its address; twice is as good as once.
func TestReserveWhatAHostHas(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		value string
		lease subnet.Lease
		taken bool
	}{
		"another's, by id":            {hostValue("h2", "192.0.2.1"), subnet.Lease{HostID: "h1"}, true},
		"another's, by address":       {hostValue("h1", "192.0.2.2"), advert("192.0.2.1"), true},
		"flannel's of another":        {flannelValue("192.0.2.2"), advert("192.0.2.1"), true},
		"flannel's, by an id":         {flannelValue("192.0.2.1"), subnet.Lease{HostID: "h1"}, true},
		"the host's, by id":           {hostValue("h1", "192.0.2.1"), subnet.Lease{HostID: "h1"}, false},
		"the host's, by address":      {hostValue("h1", "192.0.2.1"), advert("192.0.2.1"), false},
		"flannel's, by address":       {flannelValue("192.0.2.1"), advert("192.0.2.1"), false},
		"of junk nobody knows whose":  {"junk", subnet.Lease{HostID: "h1"}, true},
		"free, and so for the asking": {"", subnet.Lease{HostID: "h1"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", network)
			const key = "10.5.7.0-24"
			if tc.value != "" {
				lease(t, etcd, subnets+key, tc.value)
			}
			s := openStore(t, etcd.Endpoint())
			l := leaseFor(tc.lease, halves(7, 7)[:1])
			for range 2 {
				err := s.Reserve(t.Context(), l)
				if errors.Is(err, ErrTaken) != tc.taken || !tc.taken && err != nil {
					t.Fatalf("reserve: %v", err)
				}
			}
			value, id := etcd.get(t, subnets+key)
			if (id == 0) == tc.taken {
				t.Errorf("etcd lease %x", id)
			}
			if tc.value != "" && value != tc.value {
				t.Errorf("changed it to %s", value)
			}
		})
	}
}

// A reservation of a pair leaves nothing behind that would stand in somebody's way.
func TestReservedPairIsReleasedWhole(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", dualNetwork)
	s := openStore(t, etcd.Endpoint())
	pair := leaseFor(subnet.Lease{HostID: "h1"}, halves(3, 7))
	if err := s.Reserve(t.Context(), pair); err != nil {
		t.Fatal(err)
	}
	for i, other := range [][]netip.Prefix{halves(3, 3), halves(7, 7), halves(4, 7)} {
		if err := s.Reserve(t.Context(), leaseFor(subnet.Lease{HostID: fmt.Sprint("other", i)}, other)); !errors.Is(err, ErrTaken) {
			t.Errorf("reserve %s: %v", keyOf(other), err)
		}
	}
	listing, err := s.Leases(t.Context())
	if err != nil || len(listing.Records) != 1 {
		t.Fatal(listing, err)
	}
	if err := s.Release(t.Context(), listing.Records[0]); err != nil {
		t.Fatal(err)
	}
	left, err := etcd.raw.Get(t.Context(), prefix+"/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil || left.Count != 1 { // the config
		t.Errorf("left: %v, %v", left.Kvs, err)
	}
}
