package etcdstore

import (
	"fmt"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/subnet/leasecache"
)

// cluster is how messages name the cluster of an etcd.
func (s *server) cluster(t *testing.T) string {
	t.Helper()
	r, err := s.raw.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("cluster %x", r.Header.ClusterId)
}

// TestTwoClustersAtFirst: a host that knows neither of two clusters follows none, and nobody writes to one of them.
func TestTwoClustersAtFirst(t *testing.T) {
	t.Parallel()
	a, b := startEtcd(t, ""), startEtcd(t, "")
	s := openStore(t, a.Endpoint(), b.Endpoint())
	names := func(text string) bool {
		for _, want := range []string{a.Endpoint(), a.cluster(t), b.Endpoint(), b.cluster(t), "etcd-endpoints"} {
			if !strings.Contains(text, want) {
				return false
			}
		}
		return true
	}
	if err := s.SetNetwork(t.Context(), []byte(network), 0); err == nil || !names(err.Error()) {
		t.Errorf("SetNetwork() = %v", err)
	}
	for _, e := range []*server{a, b} {
		if value, _ := e.get(t, prefix+"/config"); value != "" {
			t.Error("the network config was written to one of two clusters")
		}
		e.put(t, prefix+"/config", network)
	}
	if _, err := s.Leases(t.Context()); err == nil || !names(err.Error()) {
		t.Errorf("Leases() = %v", err)
	}
	for _, err := range s.Follow(t.Context()) {
		if err == nil || !names(err.Error()) {
			t.Errorf("Follow() = %v", err)
		}
		break
	}
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.await("names both", func(u Update) bool { return u.Err != nil && names(u.Err.Error()) })
	b.Close()
	h.awaitHeld("")
	if keys := b.keysAfter(t); len(keys) != 0 {
		t.Errorf("the cluster that is not followed has leases %v", keys)
	}
}

// keysAfter is keys of an etcd that was closed.
func (s *server) keysAfter(t *testing.T) []string {
	t.Helper()
	return startEtcdIn(t, s.dir, "").keys(t)
}

// TestOtherCluster: a host that follows a cluster stays with it, whatever another does beside it, over a restart too.
func TestOtherCluster(t *testing.T) {
	t.Parallel()
	a, b := startEtcd(t, ""), startEtcd(t, "")
	for _, e := range []*server{a, b} {
		e.put(t, prefix+"/config", network)
	}
	peer := putPeers(t, a, 1)
	pa, pb := startProxy(t, a.addr()), startProxy(t, b.addr())
	var log counter
	cfg := Config{Endpoints: []string{pa.endpoint(), pb.endpoint()}}
	s := storeOf(t, cfg, log.logger())
	pb.set(refuse)
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	h.awaitPeers(peer...)

	pb.set(pass)
	says := "etcd at " + pb.endpoint() + " is of " + b.cluster(t) + " and not used, for this host follows " + a.cluster(t)
	h.await("names the other", func(u Update) bool { return u.Connected && u.Err != nil && strings.Contains(u.Err.Error(), says) })
	if n := log.count("an endpoint of etcd is not used"); n != 1 {
		t.Errorf("%d lines tell of the other cluster", n)
	}
	if keys := s.client.known(); fmt.Sprintf("cluster %x", keys) != a.cluster(t) {
		t.Errorf("follows %x", keys)
	}

	// The one that it knows goes away: the other is no help, neither now nor after a restart.
	pa.set(refuse)
	refuses := func(u Update) bool {
		return !u.Connected && u.Err != nil && strings.Contains(u.Err.Error(), b.cluster(t)) && strings.Contains(u.Err.Error(), "of which no endpoint answers")
	}
	h.await("does not follow the other", refuses)
	h.stop()
	s = storeOf(t, cfg, log.logger())
	h = join(t, s, JoinConfig{HostID: "h1", Last: leasecache.View{Cluster: clusterID(t, a)}}, "192.0.2.1")
	h.await("does not follow the other after a restart", refuses)
	if keys := b.keys(t); len(keys) != 0 {
		t.Errorf("the other cluster has leases %v", keys)
	}
	pa.set(pass)
	h.awaitHeld(key)

	// Nobody names the other any more.
	if err := s.client.SetEndpoints([]string{pa.endpoint()}); err != nil {
		t.Fatal(err)
	}
	h.await("is content", func(u Update) bool { return u.Connected && u.Err == nil })
}

func clusterID(t *testing.T, s *server) (id uint64) {
	t.Helper()
	if _, err := fmt.Sscanf(s.cluster(t), "cluster %x", &id); err != nil {
		t.Fatal(err)
	}
	return id
}

// TestClusterMadeAnew: what takes the place of the cluster that is known is followed, also while one of its endpoints is down.
func TestClusterMadeAnew(t *testing.T) {
	t.Parallel()
	a := startEtcd(t, "")
	a.put(t, prefix+"/config", network)
	pa, dead := startProxy(t, a.addr()), "http://127.0.0.1:1"
	s := openStore(t, pa.endpoint(), dead)
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	a.Close()
	h.await("misses etcd", func(u Update) bool { return !u.Connected })
	anew := startEtcd(t, a.addr())
	anew.put(t, prefix+"/config", network)
	h.await("follows", func(u Update) bool { return u.Connected && u.Own.State == Held && len(anew.keys(t)) == 1 })
	if got := anew.keys(t); got[0] != key {
		t.Errorf("the lease is %s, want %s", got[0], key)
	}
}

// TestOneEndpointIsDead: single requests wait no longer than for the grace, and say of each endpoint what the matter is.
func TestOneEndpointIsDead(t *testing.T) {
	t.Parallel()
	a := startEtcd(t, "")
	a.put(t, prefix+"/config", network)
	if _, _, err := openStore(t, "http://127.0.0.1:1", a.Endpoint()).Network(t.Context()); err != nil {
		t.Error(err)
	}
	_, _, err := openStore(t, "http://127.0.0.1:1", "http://127.0.0.1:2", "http://etcd.invalid:2379").Network(t.Context())
	if err == nil || !strings.Contains(err.Error(), "etcd at http://127.0.0.1:1, http://127.0.0.1:2 cannot be reached: connection refused") ||
		!strings.Contains(err.Error(), "etcd at http://etcd.invalid:2379 cannot be reached: DNS does not ") && !strings.Contains(err.Error(), "etcd at http://etcd.invalid:2379 does not answer") {
		t.Errorf("got %v", err)
	}
}
