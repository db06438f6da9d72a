package etcdstore

import (
	"fmt"
	"testing"
)

// What TestChaos found, each by itself.

// A host that must wait before it writes again said that it holds a lease that it knew to be taken.
func TestTakenIsToldWhileWritesWait(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	for i := range 5 { // more would have to wait
		rev := etcd.put(t, subnets+key, hostValue("h1", fmt.Sprintf("192.0.2.%d", 100+i)))
		h.await("puts it right", func(u Update) bool { return u.Own.Record.ModRevision > rev })
	}
	etcd.put(t, subnets+key, hostValue("h1", "192.0.2.200"))
	etcd.put(t, subnets+key, hostValue("h2", "192.0.2.2"))
	etcd.put(t, subnets+"10.5.200.0-24", hostValue("h3", "192.0.2.3"))
	h.awaitPeers("10.5.200.0-24")
	h.mu.Lock()
	defer h.mu.Unlock()
	if own := h.last.Own; own.State != Taken {
		t.Errorf("%s of %s at revision %d, which another host has since", own.State, key, h.last.Revision)
	}
}
