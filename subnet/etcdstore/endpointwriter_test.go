package etcdstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const endpointsPrefix = prefix + "/overlayd/endpoints/"

// grantLease is one of etcd's leases.
func (s *server) grantLease(t testing.TB) int64 {
	t.Helper()
	got, err := s.raw.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	return int64(got.ID)
}

// endpoints are those that etcd has, as key: value on lease.
func (s *server) endpoints(t testing.TB) (all map[string]string) {
	t.Helper()
	got, err := s.raw.Get(t.Context(), endpointsPrefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all = map[string]string{}
	for _, kv := range got.Kvs {
		all[strings.TrimPrefix(string(kv.Key), endpointsPrefix)] = fmt.Sprintf("%s on %x", kv.Value, kv.Lease)
	}
	return all
}

func (s *server) wantEndpoints(t testing.TB, want map[string]string) {
	t.Helper()
	var got map[string]string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if got = s.endpoints(t); maps.Equal(got, want) {
			return
		}
	}
	t.Fatalf("etcd has %v\nwant %v", got, want)
}

func startWriter(t testing.TB, s *Store) (w *EndpointWriter, stop func()) {
	w = s.EndpointWriter()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(cancel)
	return w, stop
}

// What a host says of its endpoints is on its lease, changes with it, and an earlier run's rest goes; in transactions, and
// nothing is written that is there.
func TestEndpointWriter(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	store := openStore(t, etcd.Endpoint())
	first, second := etcd.grantLease(t), etcd.grantLease(t)
	etcd.put(t, subnets+"10.5.1.0-24", "{}", clientv3.WithLease(clientv3.LeaseID(first)))
	etcd.put(t, endpointsPrefix+"default/a/10.5.1.9", "stale", clientv3.WithLease(clientv3.LeaseID(first)))
	etcd.put(t, endpointsPrefix+"default/b/10.5.2.9", "another's")
	const others = "default/b/10.5.2.9"
	w, stop := startWriter(t, store)
	etcd.wantEndpoints(t, map[string]string{"default/a/10.5.1.9": fmt.Sprintf("stale on %x", first), others: "another's on 0"})
	w.Set(first, map[string]string{"default/a/10.5.1.2": "x"})
	etcd.wantEndpoints(t, map[string]string{"default/a/10.5.1.2": fmt.Sprintf("x on %x", first), others: "another's on 0"})
	before := etcd.put(t, "/mark", "")
	w.Set(first, map[string]string{"default/a/10.5.1.2": "x"})
	w.Set(second, map[string]string{"default/a/10.5.1.2": "x", "default/a/10.5.1.3": "y"})
	etcd.wantEndpoints(t, map[string]string{
		"default/a/10.5.1.2": fmt.Sprintf("x on %x", second), "default/a/10.5.1.3": fmt.Sprintf("y on %x", second), others: "another's on 0",
	})
	if after := etcd.put(t, "/mark", ""); after != before+2 {
		t.Errorf("etcd counts %d writes where one was to be", after-before-1)
	}
	stop()
	etcd.wantEndpoints(t, map[string]string{
		"default/a/10.5.1.2": fmt.Sprintf("x on %x", second), "default/a/10.5.1.3": fmt.Sprintf("y on %x", second), others: "another's on 0",
	})
	if err := store.DeleteEndpoints(t.Context(), second); err != nil {
		t.Error(err)
	}
	etcd.wantEndpoints(t, map[string]string{others: "another's on 0"})
}

// A lease that etcd does not know any more is not tried for ever: the host gets another.
func TestEndpointWriterLosesLease(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	w, _ := startWriter(t, openStore(t, etcd.Endpoint()))
	first, second := etcd.grantLease(t), etcd.grantLease(t)
	w.Set(first, map[string]string{"default/a/10.5.1.2": "x"})
	etcd.wantEndpoints(t, map[string]string{"default/a/10.5.1.2": fmt.Sprintf("x on %x", first)})
	if _, err := etcd.raw.Revoke(t.Context(), clientv3.LeaseID(first)); err != nil {
		t.Fatal(err)
	}
	w.Set(first, map[string]string{"default/a/10.5.1.2": "y"})
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := w.Status(); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it says nothing of a lease that is gone")
		}
	}
	w.Set(second, map[string]string{"default/a/10.5.1.2": "y"})
	etcd.wantEndpoints(t, map[string]string{"default/a/10.5.1.2": fmt.Sprintf("y on %x", second)})
}

// A host whose subnet is reserved has a lease for its endpoints alone, of which there is none while it has nothing to say.
func TestEndpointWriterReserved(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	w, _ := startWriter(t, openStore(t, etcd.Endpoint()))
	w.Set(0, nil)
	time.Sleep(100 * time.Millisecond)
	if got, err := etcd.raw.Leases(t.Context()); err != nil || len(got.Leases) > 0 {
		t.Errorf("leases %v, %v", got, err)
	}
	w.Set(0, map[string]string{"default/a/10.5.1.2": "x"})
	for end := time.Now().Add(patience); len(etcd.endpoints(t)) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is written")
		}
	}
	got, err := etcd.raw.Leases(t.Context())
	if err != nil || len(got.Leases) != 1 {
		t.Fatalf("leases %v, %v", got, err)
	}
	etcd.wantEndpoints(t, map[string]string{"default/a/10.5.1.2": fmt.Sprintf("x on %x", got.Leases[0].ID)})
}

// A flood of containers is written in transactions that etcd takes.
func TestEndpointWriterMany(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	w, _ := startWriter(t, openStore(t, etcd.Endpoint()))
	lease := etcd.grantLease(t)
	want := map[string]string{}
	for i := range 1000 {
		want[fmt.Sprintf("default/a/10.5.%d.%d", i/200, i%200)] = strings.Repeat("x", 3000)
	}
	before := etcd.put(t, "/mark", "")
	w.Set(lease, want)
	for end := time.Now().Add(patience); len(etcd.endpoints(t)) < 1000; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			_, err := w.Status()
			t.Fatal("not all are written: ", err)
		}
	}
	if n := etcd.put(t, "/mark", "") - before - 1; n > 17 {
		t.Errorf("%d transactions", n)
	}
	w.Set(lease, nil)
	etcd.wantEndpoints(t, map[string]string{})
}

// Whoever follows keys hears all of them at first, then what changes, and all again when etcd was another meanwhile.
func TestFollowKeys(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/overlayd/policy/a/x", "1")
	etcd.put(t, prefix+"/overlayd/policy-index", "2")
	etcd.put(t, prefix+"/overlayd/namespaces/a", "3")
	etcd.put(t, prefix+"/overlayd/tokens/a", "secret")
	news := make(chan News)
	store := openStore(t, etcd.Endpoint())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		store.FollowKeys(ctx, func(n News) {
			select {
			case news <- n:
			case <-ctx.Done():
			}
		}, "policy", "namespaces/")
	}()
	next := func() (n News) {
		t.Helper()
		for n.Err != nil || len(n.Put)+len(n.Deleted) == 0 && !n.Listed {
			select {
			case n = <-news:
			case <-time.After(patience):
				t.Fatal("no news")
			}
		}
		return n
	}
	var keys []string
	list := next()
	for _, kv := range list.Put {
		keys = append(keys, kv.Key+"="+string(kv.Value))
	}
	if want := []string{"policy-index=2", "policy/a/x=1", "namespaces/a=3"}; !list.Listed || !slices.Equal(keys, want) {
		t.Errorf("listed %v, want %v", keys, want)
	}
	etcd.put(t, prefix+"/overlayd/policy/a/y", "4")
	if n := next(); n.Listed || len(n.Put) != 1 || n.Put[0].Key != "policy/a/y" {
		t.Errorf("news %+v", n)
	}
	etcd.del(t, prefix+"/overlayd/policy/a/x")
	if n := next(); n.Listed || len(n.Deleted) != 1 || n.Deleted[0].Key != "policy/a/x" {
		t.Errorf("news %+v", n)
	}
	cancel()
	<-ended
}
