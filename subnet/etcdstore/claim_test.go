package etcdstore

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net/netip"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestClaimOrder(t *testing.T) {
	t.Parallel()
	const me, addr = "h1", "192.0.2.1"
	previous := []netip.Prefix{netip.MustParsePrefix("10.5.33.0/24")}
	for name, tc := range map[string]struct {
		present  map[string]string // with an etcd lease
		reserved map[string]string // without
		previous []netip.Prefix
		want     string // key; empty: any but those present
		expires  bool
	}{
		"taken by another":             {present: map[string]string{"10.5.33.0-24": hostValue("h2", "192.0.2.2")}, previous: previous, expires: true},
		"overlapped by another":        {present: map[string]string{"10.5.32.0-23": hostValue("h2", "192.0.2.2")}, previous: previous, expires: true},
		"junk at the previous subnet":  {present: map[string]string{"10.5.33.0-24": "junk"}, previous: previous, expires: true},
		"previous outside the network": {previous: []netip.Prefix{netip.MustParsePrefix("10.9.33.0/24")}, expires: true},
		"our address, another's id":    {present: map[string]string{"10.5.7.0-24": hostValue("h2", addr)}, expires: true},
		"previous":                     {previous: previous, want: "10.5.33.0-24", expires: true},
		"flannel's":                    {present: map[string]string{"10.5.7.0-24": flannelValue(addr)}, previous: previous, want: "10.5.7.0-24", expires: true},
		"own before flannel's":         {present: map[string]string{"10.5.7.0-24": flannelValue(addr), "10.5.8.0-24": hostValue(me, addr)}, previous: previous, want: "10.5.8.0-24", expires: true},
		"reservation by id": {
			present:  map[string]string{"10.5.8.0-24": hostValue(me, addr)},
			reserved: map[string]string{"10.5.9.0-24": `{"HostID":"h1"}`}, want: "10.5.9.0-24",
		},
		"flannel's reservation": {
			present:  map[string]string{"10.5.8.0-24": hostValue(me, addr)},
			reserved: map[string]string{"10.5.9.0-24": `{"PublicIP":"192.0.2.1"}`}, want: "10.5.9.0-24",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", network)
			lease, err := etcd.raw.Grant(t.Context(), 24*3600)
			if err != nil {
				t.Fatal(err)
			}
			for key, value := range tc.present {
				etcd.put(t, subnets+key, value, clientv3.WithLease(lease.ID))
			}
			for key, value := range tc.reserved {
				etcd.put(t, subnets+key, value)
			}
			h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: me, Previous: tc.previous}, addr)
			own := h.awaitHeld(tc.want).Own
			if _, ok := tc.present[own.Record.Key()]; tc.want == "" && ok {
				t.Errorf("holds %s", own.Record.Key())
			}
			if tc.expires { // of a lease that it takes over etcd says it with the first renewal
				own = h.await("knows how long it has the lease", func(u Update) bool { return !u.Own.Expires.IsZero() }).Own
			} else if !own.Expires.IsZero() {
				t.Errorf("expires %v", own.Expires)
			}
			value, id := etcd.get(t, subnets+own.Record.Key())
			want, err := own.Record.Value()
			if err != nil {
				t.Fatal(err)
			}
			if value != string(want) || !strings.Contains(value, `"HostID":"h1","Host":"name-of-h1"`) {
				t.Errorf("etcd holds %s, want %s", value, want)
			}
			if (id != 0) != tc.expires {
				t.Errorf("etcd lease %x", id)
			}
		})
	}
}

func TestDualStack(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}`)
	s := openStore(t, etcd.Endpoint())
	a := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1", "2001:db8::1")
	b := join(t, s, JoinConfig{HostID: "h2"}, "192.0.2.2", "2001:db8::2")
	ka, kb := a.awaitHeld("").Own.Record.Key(), b.awaitHeld("").Own.Record.Key()
	if !strings.Contains(ka, "&fd00:5:") || ka == kb {
		t.Errorf("keys %s and %s", ka, kb)
	}
	a.awaitPeers(kb)
	b.awaitPeers(ka)
}

// manyHosts hosts want one subnet less than that, at the same moment. It is not parallel: it needs the whole machine.
func TestManyClaimAtOnce(t *testing.T) {
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	s.log = slog.New(slog.DiscardHandler)
	hosts := make([]*host, manyHosts)
	for i := range hosts {
		hosts[i] = join(t, s, JoinConfig{HostID: fmt.Sprint("h", i)}, netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}).String())
	}
	for _, h := range hosts {
		h.await("waits for a config", func(u Update) bool { return u.Connected && errors.Is(u.Err, ErrNoNetwork) })
	}
	// The first subnet of a network is not leased.
	etcd.put(t, prefix+"/config", fmt.Sprintf(`{"Network":"10.5.0.0/%d","SubnetLen":24}`, 24-bits.Len(manyHosts-1)))

	var loser, winner *host
	held := map[string]bool{}
	for _, h := range hosts {
		u := h.await("settles", func(u Update) bool {
			return u.Own.State == Held || strings.Contains(u.Own.Reason, "out of subnets")
		})
		if u.Own.State == Held {
			held[u.Own.Record.Key()], winner = true, h
		} else {
			loser = h
		}
	}
	if len(held) != manyHosts-1 || len(etcd.keys(t)) != manyHosts-1 || loser == nil {
		t.Fatalf("%d subnets are held, %d keys, loser: %v", len(held), len(etcd.keys(t)), loser != nil)
	}
	eventually(t, "the loser knows all peers", func() bool { return len(loser.peerKeys()) == manyHosts-1 })

	winner.stop()
	free := winner.awaitHeld("").Own.Record
	if err := s.Release(t.Context(), free); err != nil {
		t.Fatal(err)
	}
	loser.awaitHeld(free.Key())
}
