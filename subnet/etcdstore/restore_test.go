package etcdstore

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// etcd is wiped and comes up empty: hosts keep each other and bring back their leases.
func TestWipedEtcd(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	addr := etcd.addr()
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	a := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	b := join(t, s, JoinConfig{HostID: "h2"}, "192.0.2.2")
	ka, kb := a.awaitHeld("").Own.Record.Key(), b.awaitHeld("").Own.Record.Key()
	a.awaitPeers(kb)
	b.awaitPeers(ka)
	for i := range 50 { // the old etcd is further than the new one
		etcd.put(t, "/elsewhere", fmt.Sprint(i))
	}
	etcd.Close()

	etcd = startEtcd(t, addr)
	a.await("misses the config", func(u Update) bool { return u.Connected && errors.Is(u.Err, ErrNoNetwork) })
	eventually(t, "both leases are back", func() bool { return len(etcd.keys(t)) == 2 })
	etcd.put(t, prefix+"/config", network)
	a.await("is back", func(u Update) bool { return u.Err == nil && u.Own.State == Held && u.Own.Record.Key() == ka })
	b.await("is back", func(u Update) bool { return u.Err == nil && u.Own.State == Held && u.Own.Record.Key() == kb })
	if n := a.goneCount(kb) + b.goneCount(ka); n != 0 {
		t.Errorf("the peers lost each other %d times", n)
	}
}

// etcd is restored from a backup: same cluster, lower revision, and what came after is lost.
func TestRestoredEtcd(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	addr := etcd.addr()
	etcd.put(t, prefix+"/config", network)
	etcd.put(t, subnets+peerKey(1), peerValue(1))
	etcd.put(t, subnets+peerKey(2), peerValue(2))
	etcd.Close()
	backup := copyDir(t, etcd.dir)

	etcd = startEtcdIn(t, etcd.dir, addr)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1", Grace: time.Second}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	etcd.del(t, subnets+peerKey(2))
	etcd.put(t, subnets+peerKey(3), peerValue(3))
	h.awaitPeers(peerKey(1), peerKey(3))
	etcd.Close()

	etcd = startEtcdIn(t, backup, addr)
	h.awaitPeers(peerKey(1), peerKey(2))
	h.awaitHeld(key)
	if value, _ := etcd.get(t, subnets+key); value == "" {
		t.Error("the own lease is not back in etcd")
	}
}

// A host that remembers more than etcd holds gives up the rest after the time of grace.
func TestSeed(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	p := startProxy(t, etcd.addr())
	p.set(refuse)
	etcd.put(t, prefix+"/config", network)
	etcd.put(t, subnets+peerKey(1), peerValue(1))
	var seed leasecache.View
	seed.Config = []byte(network)
	for i := range 3 {
		l, err := subnet.ParseLease(peerKey(i), []byte(peerValue(i)))
		if err != nil {
			t.Fatal(err)
		}
		seed.Peers = append(seed.Peers, &subnet.Record{Lease: l})
	}
	h := join(t, openStore(t, p.endpoint()), JoinConfig{HostID: "h1", Grace: 2 * time.Second, Last: seed}, "192.0.2.1")
	u := h.await("misses etcd", func(u Update) bool { return u.Err != nil })
	if u.Complete || u.Network != nil || u.Peers != nil {
		t.Errorf("before etcd was heard: %+v", u)
	}
	p.set(pass)
	h.awaitPeers(peerKey(0), peerKey(1), peerKey(2))
	h.awaitPeers(peerKey(1))
}

// An etcd that was restored and has gone on since holds everything as the host knows it, but for what changed last.
func TestRestoredEtcdThatWentOn(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	addr := etcd.addr()
	etcd.put(t, prefix+"/config", network)
	proxy := startProxy(t, addr)
	h := join(t, openStore(t, proxy.endpoint()), JoinConfig{HostID: "h1", Grace: time.Second}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	etcd.Close()
	backup := copyDir(t, etcd.dir)

	etcd = startEtcdIn(t, etcd.dir, addr)
	etcd.put(t, subnets+peerKey(3), peerValue(3))
	h.awaitPeers(peerKey(3))
	proxy.set(refuse)
	etcd.Close()
	etcd = startEtcdIn(t, backup, addr)
	for range 10 {
		etcd.put(t, "/elsewhere", "x")
	}
	proxy.set(pass)
	h.awaitPeers() // when the time of grace is over
	h.awaitHeld(key)
}
