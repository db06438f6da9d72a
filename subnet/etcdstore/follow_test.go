package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// peerKey is the key of the i-th peer that a test puts.
func peerKey(i int) string { return fmt.Sprintf("10.5.%d.0-24", 100+i) }

func peerValue(i int) string {
	return hostValue(fmt.Sprint("peer", i), fmt.Sprintf("192.0.2.%d", 100+i))
}

// putPeers puts n peers and returns their keys.
func putPeers(t testing.TB, etcd *server, n int) []string {
	t.Helper()
	var keys []string
	for i := range n {
		keys = append(keys, peerKey(i))
		etcd.put(t, subnets+peerKey(i), peerValue(i))
	}
	return keys
}

func TestWaitsForNetwork(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	u := h.await("misses a config", func(u Update) bool { return u.Err != nil && u.Connected })
	const want = `no network config at /coreos.com/network/config: set one with "overlayctl network set 10.244.0.0/16"`
	if u.Err.Error() != want || !errors.Is(u.Err, ErrNoNetwork) || u.Own.State != Waiting || u.Own.Reason != want {
		t.Errorf("update: %+v", u)
	}
	etcd.put(t, prefix+"/config", "{")
	h.await("cannot read the config", func(u Update) bool { return u.Err != nil && !errors.Is(u.Err, ErrNoNetwork) })
	etcd.put(t, prefix+"/config", network)
	if u := h.awaitHeld(""); u.Err != nil || !u.Complete || string(u.Config) != network {
		t.Errorf("update: %+v", u)
	}
}

func TestConfigChange(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	etcd.put(t, prefix+"/config", "junk")
	u := h.await("complains", func(u Update) bool { return u.Err != nil })
	if string(u.Config) != network || u.Network.String() != "10.5.0.0/16" || u.Own.State != Held || !u.Connected {
		t.Errorf("with a config that is junk: %+v", u)
	}
	etcd.del(t, prefix+"/config")
	h.await("misses the config", func(u Update) bool { return errors.Is(u.Err, ErrNoNetwork) && string(u.Config) == network })
	next := strings.ReplaceAll(network, "vxlan", "host-gw")
	etcd.put(t, prefix+"/config", next)
	u = h.await("follows", func(u Update) bool { return u.Err == nil && string(u.Config) == next })
	if u.Network.Backend.Type != "host-gw" || u.Own.Record.Key() != key {
		t.Errorf("after the change: %+v", u)
	}
}

// The start costs two range reads, whatever the number of leases, and an event costs none.
func TestStartCostsTwoReads(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	keys := putPeers(t, etcd, 100)
	s := openStore(t, etcd.Endpoint())
	var mu sync.Mutex
	calls := map[string]int{}
	s.client.dialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			mu.Lock()
			calls[method]++
			mu.Unlock()
			return invoke(ctx, method, req, reply, cc, opts...)
		})}
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.awaitHeld("")
	h.awaitPeers(keys...)
	etcd.put(t, subnets+peerKey(100), peerValue(100))
	h.awaitPeers(append(keys, peerKey(100))...)
	mu.Lock()
	defer mu.Unlock()
	want := map[string]int{"/etcdserverpb.KV/Range": 2, "/etcdserverpb.Lease/LeaseGrant": 1, "/etcdserverpb.KV/Txn": 1, "/etcdserverpb.Maintenance/Status": 1}
	if fmt.Sprint(calls) != fmt.Sprint(want) {
		t.Errorf("calls %v, want %v", calls, want)
	}
}

func TestOneLeavesManyVanish(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	keys := putPeers(t, etcd, 40)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1", Grace: 3 * time.Second}, "192.0.2.1")
	h.awaitPeers(keys...)

	etcd.del(t, subnets+keys[0])
	h.awaitPeers(keys[1:]...)

	etcd.del(t, subnets, clientv3.WithPrefix())
	etcd.put(t, subnets+"10.5.20.0-24", hostValue("new", "192.0.2.20"))
	// Two come back, one of them changed; one's subnet goes to a wider lease.
	etcd.put(t, subnets+keys[1], peerValue(1))
	etcd.put(t, subnets+keys[2], hostValue("peer2", "192.0.2.222"))
	etcd.put(t, subnets+"10.5.138.0-23", hostValue("wide", "192.0.2.33"))
	h.await("has its own lease again", func(u Update) bool { return u.Own.State == Held && u.Own.Record.CreateRevision > 45 })
	h.awaitPeers(append(keys[1:38:38], keys[0], "10.5.20.0-24", "10.5.138.0-23")...) // 0 left lately: it is back too
	h.awaitPeers(keys[1], keys[2], "10.5.20.0-24", "10.5.138.0-23")
	if n := h.goneCount(keys[1]) + h.goneCount(keys[2]); n != 0 {
		t.Errorf("peers that came back were gone %d times", n)
	}
}

func TestJunkHarmsNobody(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	keys := putPeers(t, etcd, 10)
	var log counter
	s := openStore(t, etcd.Endpoint())
	s.log = log.logger()
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.awaitHeld("")
	h.awaitPeers(keys...)
	const flood = 2000
	for i := range flood / 100 {
		var ops []clientv3.Op
		for j := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%sjunk-%d-%d", subnets, i, j), strings.Repeat("x", 100)))
		}
		if _, err := etcd.raw.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	etcd.put(t, subnets+"10.77.1.0-24", hostValue("outside", "192.0.2.7"))
	etcd.put(t, subnets+keys[3], "junk over a peer")
	etcd.put(t, subnets+strings.Repeat("k", 1000), strings.Repeat("v", 1<<20))
	etcd.put(t, subnets+"10.5.50.0-24", hostValue("new", "192.0.2.50"))
	h.awaitPeers(append(keys, "10.5.50.0-24")...)
	for _, key := range keys {
		if h.goneCount(key) > 0 {
			t.Errorf("peer %s was gone", key)
		}
	}
	if n := log.count("skipped"); n < flood+3 {
		t.Errorf("%d log lines about skipped keys", n)
	}
	listing, err := s.Leases(t.Context())
	if err != nil || len(listing.Records) != 11 || len(listing.Skipped) != flood+3 {
		t.Errorf("listing: %d leases, %d skipped, %v", len(listing.Records), len(listing.Skipped), err)
	}
	// A host that starts now sees the same.
	late := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h2"}, "192.0.2.2")
	late.awaitHeld("")
	eventually(t, "the late host knows its peers", func() bool { return len(late.peerKeys()) == 11 })
}

// While a host is cut off, much changes, and etcd forgets how.
func TestCompactionWhileAway(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	keys := putPeers(t, etcd, 5)
	p := startProxy(t, etcd.addr())
	h := join(t, openStore(t, p.endpoint()), JoinConfig{HostID: "h1", Grace: time.Second}, "192.0.2.1")
	own := h.awaitHeld("").Own.Record
	h.awaitPeers(keys...)

	p.set(refuse)
	u := h.await("misses etcd", func(u Update) bool { return !u.Connected })
	if u.Err == nil || !strings.HasPrefix(u.Err.Error(), "etcd") || u.Own.State != Held || u.Network == nil {
		t.Errorf("while etcd is away: %+v", u)
	}
	etcd.del(t, subnets+keys[0])
	etcd.put(t, subnets+keys[1], hostValue("peer1", "192.0.2.250"))
	rev := etcd.put(t, subnets+peerKey(7), peerValue(7))
	if _, err := etcd.raw.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	p.set(pass)
	h.awaitPeers(append(keys[1:], peerKey(7))...)
	u = h.await("is back", func(u Update) bool { return u.Connected && u.Err == nil })
	if !u.Own.Record.Equal(own) {
		t.Errorf("own lease was %+v, is %+v", own, u.Own.Record)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := h.peers[keys[1]].Endpoints[0].PublicIP.String(); a != "192.0.2.250" {
		t.Errorf("missed a change: %s", a)
	}
}

// An endpoint that takes everything and answers nothing is left for another within 10 s.
func TestSwallowingEndpoint(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	a, b := startProxy(t, etcd.addr()), startProxy(t, etcd.addr())
	h := join(t, openStore(t, a.endpoint(), b.endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.awaitHeld("")
	if a.used() == 0 {
		a, b = b, a
	}
	a.set(swallow)
	begin := time.Now()
	etcd.put(t, subnets+peerKey(1), peerValue(1))
	h.awaitPeers(peerKey(1))
	if d := time.Since(begin); d > 12*time.Second || b.used() == 0 {
		t.Errorf("took %v", d)
	}
}
