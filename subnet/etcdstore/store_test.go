package etcdstore

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

func TestNetworkKey(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	ctx := t.Context()
	if _, _, err := s.Network(ctx); !errors.Is(err, ErrNoNetwork) || !strings.Contains(err.Error(), prefix+"/config") {
		t.Errorf("without a config: %v", err)
	}
	if _, err := s.Leases(ctx); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("leases without a config: %v", err)
	}
	if err := s.SetNetwork(ctx, []byte("{}"), 0); err == nil {
		t.Error("wrote a config that is none")
	}
	if err := s.SetNetwork(ctx, []byte(network), 0); err != nil {
		t.Error(err)
	}
	if err := s.SetNetwork(ctx, []byte(`{"Network":"10.6.0.0/16"}`), 0); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	raw, rev, err := s.Network(ctx)
	if string(raw) != network || rev == 0 || err != nil {
		t.Error(string(raw), rev, err)
	}
	next := []byte(`{"Network":"10.6.0.0/16"}`)
	if err := s.SetNetwork(ctx, next, rev-1); !errors.Is(err, ErrConflict) {
		t.Errorf("at another revision: %v", err)
	}
	if err := s.SetNetwork(ctx, next, rev); err != nil {
		t.Error(err)
	}
}

func lease24(subnetText, hostID, addr string) subnet.Lease {
	l := subnet.Lease{HostID: hostID, Endpoints: []subnet.Endpoint{{Subnet: netip.MustParsePrefix(subnetText)}}}
	if addr != "" {
		l.Endpoints[0].PublicIP = netip.MustParseAddr(addr)
	}
	return l
}

func TestReserveAndRelease(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	ctx := t.Context()
	if err := s.Reserve(ctx, lease24("10.5.7.0/24", "h1", "")); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("without a network: %v", err)
	}
	etcd.put(t, prefix+"/config", network)
	etcd.put(t, subnets+"10.5.40.0-22", hostValue("wide", "192.0.2.9"))
	etcd.put(t, subnets+"10.5.50.0-24", "junk")
	for _, l := range []subnet.Lease{lease24("10.5.41.0/24", "h1", ""), lease24("10.5.50.0/24", "h1", "")} {
		if err := s.Reserve(ctx, l); !errors.Is(err, ErrTaken) {
			t.Errorf("reserve %s: %v", l.Key(), err)
		}
	}
	if err := s.Reserve(ctx, lease24("10.6.1.0/24", "h1", "")); err == nil || !strings.Contains(err.Error(), "10.5.0.0/16") {
		t.Errorf("outside the network: %v", err)
	}
	if err := s.Reserve(ctx, lease24("10.5.7.0/24", "h1", "")); err != nil {
		t.Fatal(err)
	}
	if err := s.Reserve(ctx, lease24("10.5.7.0/24", "h2", "")); !errors.Is(err, ErrTaken) {
		t.Errorf("reserved for another: %v", err)
	}
	if err := s.Reserve(ctx, lease24("10.5.7.0/24", "h1", "")); err != nil {
		t.Errorf("reserved for the same: %v", err)
	}

	listing, err := s.Leases(ctx)
	if err != nil || len(listing.Records) != 2 || len(listing.Skipped) != 1 {
		t.Fatalf("%+v, %v", listing, err)
	}
	r := listing.Records[0]
	if r.Key() != "10.5.7.0-24" || r.HostID != "h1" || r.LeaseID != 0 {
		t.Errorf("first: %+v", r)
	}
	stale := r
	stale.ModRevision--
	if err := s.Release(ctx, stale); !errors.Is(err, ErrConflict) {
		t.Errorf("released what has changed: %v", err)
	}
	if err := s.Release(ctx, r); err != nil {
		t.Error(err)
	}
	if err := s.Release(ctx, r); !errors.Is(err, ErrConflict) {
		t.Errorf("released twice: %v", err)
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	l, err := etcd.raw.Grant(t.Context(), 600)
	if err != nil {
		t.Fatal(err)
	}
	until, err := s.Expiry(t.Context(), int64(l.ID))
	if left := time.Until(until); err != nil || left > 600*time.Second || left < 500*time.Second {
		t.Error(until, err)
	}
	if until, err := s.Expiry(t.Context(), 12345); err != nil || time.Until(until) > 0 {
		t.Errorf("of a lease that is not: %v, %v", until, err)
	}
}

// What is followed is the whole, whatever is missed meanwhile, and only leases that count.
func TestFollow(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	wide := `{"Network":"10.0.0.0/8","SubnetLen":24}`
	steps := []struct {
		want string
		next func()
	}{
		{"no network config", func() { etcd.put(t, prefix+"/config", network) }},
		{"", func() { etcd.put(t, subnets+"10.5.7.0-24", hostValue("h1", "192.0.2.1")) }},
		{"h1", func() { etcd.put(t, subnets+"10.5.7.0-24", "junk") }},
		{"skipped 10.5.7.0-24", func() { etcd.put(t, subnets+"10.5.7.0-24", hostValue("h2", "192.0.2.1")) }},
		{"h2", func() { etcd.put(t, subnets+"10.6.7.0-24", hostValue("h3", "192.0.2.3")) }},
		{"h2 skipped 10.6.7.0-24", func() { etcd.put(t, prefix+"/config", wide) }},
		{"h2 h3", func() { etcd.del(t, subnets+"10.5.7.0-24") }},
		{"h3", func() { etcd.Close() }},
		{"refused", func() {
			etcd := startEtcdIn(t, etcd.dir, etcd.addr())
			etcd.put(t, subnets+"10.5.8.0-24", hostValue("h4", "192.0.2.4"))
		}},
		{"h4 h3", func() {}},
	}
	for listing, err := range s.Follow(t.Context()) {
		var got []string
		for _, r := range listing.Records {
			got = append(got, r.HostID)
		}
		for _, k := range listing.Skipped {
			got = append(got, "skipped "+k.Key)
		}
		want, text := steps[0].want, strings.Join(got, " ")
		if err != nil && (want == "" || !strings.Contains(err.Error(), want)) || err == nil && text != want {
			t.Logf("not yet %q: %s, %v", want, text, err)
			continue
		}
		steps[0].next()
		if steps = steps[1:]; len(steps) == 0 {
			break
		}
	}
	if len(steps) > 0 {
		t.Errorf("not seen: %q", steps[0].want)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range s.Follow(ctx) {
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

// Without etcd the first answer says why there is none.
func TestNoEtcd(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	etcd.Close()
	if _, _, err := s.Network(t.Context()); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
}

// Pages fit together at one revision.
func TestManyLeases(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", `{"Network":"10.0.0.0/8","SubnetLen":24}`)
	const leases = pageSize + 100
	putMany(t, etcd, leases)
	listing, err := openStore(t, etcd.Endpoint()).Leases(t.Context())
	if err != nil || len(listing.Records) != leases || len(listing.Skipped) != 0 {
		t.Errorf("%d leases, %d skipped, %v", len(listing.Records), len(listing.Skipped), err)
	}
}

// putMany puts n leases below 10.0.0.0/8.
func putMany(t testing.TB, etcd *server, n int) {
	t.Helper()
	p := netip.MustParsePrefix("10.0.1.0/24")
	var ops []clientv3.Op
	for i := range n {
		a := p.Addr().As4()
		a[1], a[2] = byte((i+1)>>8), byte(i+1)
		key := subnet.Lease{Endpoints: []subnet.Endpoint{{Subnet: netip.PrefixFrom(netip.AddrFrom4(a), 24)}}}.Key()
		ops = append(ops, clientv3.OpPut(subnets+key, hostValue(key, netip.AddrFrom4([4]byte{198, 18, a[1], a[2]}).String())))
		if len(ops) == 100 || i == n-1 {
			if _, err := etcd.raw.Txn(t.Context()).Then(ops...).Commit(); err != nil {
				t.Fatal(err)
			}
			ops = ops[:0]
		}
	}
}
