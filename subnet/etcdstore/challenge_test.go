package etcdstore

import (
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A copy of a host that lives does not take its lease, and says what to do; when the other is gone it does.
func TestCloneIsRefused(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	first := join(t, s, JoinConfig{HostID: "h1", Host: "alpha"}, "192.0.2.1")
	key := first.awaitHeld("").Own.Record.Key()
	before, _ := etcd.get(t, subnets+key)
	clone := join(t, s, JoinConfig{HostID: "h1", Host: "alpha"}, "192.0.2.2")
	clone.await("is refused", func(u Update) bool {
		return u.Own.State == Claiming && strings.Contains(u.Own.Reason, "192.0.2.1 runs with this host's identity")
	})
	first.awaitHeld(key)
	if now, _ := etcd.get(t, subnets+key); now != before || len(etcd.keys(t)) != 1 {
		t.Errorf("the lease is %s, was %s", now, before)
	}
	first.stop()
	u := clone.awaitHeld(key)
	if u.Own.Record.Endpoints[0].PublicIP.String() != "192.0.2.2" || u.Own.Reason != "" {
		t.Errorf("own: %+v", u.Own)
	}
	// The first comes back: now the other is the one that lives.
	first = join(t, s, JoinConfig{HostID: "h1", Host: "alpha"}, "192.0.2.1")
	first.await("is refused", func(u Update) bool { return strings.Contains(u.Own.Reason, "192.0.2.2 runs with this host's identity") })
}

// A lease that was overwritten by a copy that lives is not written back.
func TestCloneThatWon(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	proxy := startProxy(t, etcd.addr())
	first := join(t, openStore(t, proxy.endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := first.awaitHeld("").Own.Record.Key()
	proxy.set(refuse) // it cannot answer
	clone := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.2")
	clone.awaitHeld(key)
	won, _ := etcd.get(t, subnets+key)
	proxy.set(pass)
	first.await("has lost", func(u Update) bool {
		return u.Own.State == Taken && strings.Contains(u.Own.Reason, "192.0.2.2 runs with this host's identity")
	})
	if now, _ := etcd.get(t, subnets+key); now != won {
		t.Errorf("the lease is %s, was %s", now, won)
	}
	clone.awaitHeld(key)
}

// Two hosts of one address: the second gets no lease while the first lives, and is told who that is.
func TestTwinIsRefused(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	first := join(t, s, JoinConfig{HostID: "h1", Host: "alpha"}, "192.0.2.1")
	key := first.awaitHeld("").Own.Record.Key()
	second := join(t, s, JoinConfig{HostID: "h2", Host: "beta"}, "192.0.2.1")
	second.await("is refused", func(u Update) bool {
		return u.Own.State == Claiming && strings.Contains(u.Own.Reason, `host "alpha" (h1) at 192.0.2.1 has this host's address`)
	})
	if keys := etcd.keys(t); len(keys) != 1 {
		t.Errorf("leases %v", keys)
	}
	// Another address helps, and a host that has a lease does not get the first one's address.
	second.Advertise(advert("192.0.2.2"))
	other := second.awaitHeld("").Own.Record.Key()
	second.Advertise(advert("192.0.2.1"))
	u := second.await("keeps its lease as it was", func(u Update) bool {
		return u.Own.State == Held && strings.Contains(u.Own.Reason, "has this host's address")
	})
	if u.Own.Record.Key() != other || u.Own.Record.Endpoints[0].PublicIP.String() != "192.0.2.2" {
		t.Errorf("own: %+v", u.Own)
	}
	etcd.del(t, subnets+key)
	first.awaitHeld(key)
	first.stop()
	etcd.del(t, subnets+key)
	second.await("has the address", func(u Update) bool {
		return u.Own.State == Held && u.Own.Reason == "" && u.Own.Record.Endpoints[0].PublicIP.String() == "192.0.2.1"
	})
}

// Who is gone keeps nobody from his lease: a host that moved while it was down, and one that lost its identity.
func TestTheGoneAreNoTrouble(t *testing.T) {
	t.Parallel()
	for name, id := range map[string]string{"moved": "h1", "lost its state": "h2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", network)
			s := openStore(t, etcd.Endpoint())
			first := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
			first.awaitHeld("")
			first.stop()
			addr := "192.0.2.1"
			if id == "h1" {
				addr = "192.0.2.2"
			}
			start := time.Now()
			second := join(t, s, JoinConfig{HostID: id}, addr)
			second.await("holds a lease, and all is well", func(u Update) bool { return u.Own.State == Held && u.Own.Reason == "" })
			if took := time.Since(start); took < answerWithin {
				t.Errorf("the first had %v to answer", took)
			}
		})
	}
}

// Who comes back as he was asks nobody.
func TestRestartAsksNobody(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	for range 2 {
		h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
		h.awaitHeld("")
		h.stop()
	}
	r, err := etcd.raw.Get(t.Context(), "/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	if r.Count != 2 || r.Header.Revision != 3 {
		t.Errorf("%d keys at revision %d, want config and lease, each put once", r.Count, r.Header.Revision)
	}
}
