package etcdstore

import (
	"testing"
	"time"
)

// BenchmarkStart is a host's start among 10,000 peers, from Join until it holds a lease and knows them all.
func BenchmarkStart(b *testing.B) {
	const leases = 10_000
	etcd := startEtcd(b, "")
	etcd.put(b, prefix+"/config", `{"Network":"10.0.0.0/8","SubnetLen":24}`)
	putMany(b, etcd, leases)
	s := openStore(b, etcd.Endpoint())
	for b.Loop() {
		h := join(b, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
		h.await("knows all", func(u Update) bool { return u.Own.State == Held && len(h.peers) == leases })
		h.stop()
	}
}

// BenchmarkEvent is the time from a put to the host's hearing of it, among 10,000 peers.
func BenchmarkEvent(b *testing.B) {
	const leases = 10_000
	etcd := startEtcd(b, "")
	etcd.put(b, prefix+"/config", `{"Network":"10.0.0.0/8","SubnetLen":24}`)
	putMany(b, etcd, leases)
	h := join(b, openStore(b, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.await("knows all", func(u Update) bool { return u.Own.State == Held && len(h.peers) == leases })
	key := "10.200.0.0-24"
	values := []string{hostValue("x", "192.0.2.3"), hostValue("x", "192.0.2.4")}
	for i := 0; b.Loop(); i++ {
		rev := etcd.put(b, subnets+key, values[i%2])
		for deadline := time.Now().Add(patience); ; {
			h.mu.Lock()
			seen := h.peers[key].ModRevision
			h.mu.Unlock()
			if seen == rev {
				break
			}
			if time.Now().After(deadline) {
				b.Fatal("in vain")
			}
			time.Sleep(20 * time.Microsecond)
		}
	}
}
