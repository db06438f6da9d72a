package etcdstore

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A lease is kept without a put, so that no other host hears of it.
func TestRenewalIsNoEvent(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1", TTL: time.Second}, "192.0.2.1")
	first := h.awaitHeld("").Own
	h.await("renews a few times", func(u Update) bool { return u.Own.Expires.After(first.Expires.Add(2 * time.Second)) })
	r, err := etcd.raw.Get(t.Context(), subnets+first.Record.Key())
	if err != nil {
		t.Fatal(err)
	}
	if r.Header.Revision != first.Record.ModRevision {
		t.Errorf("etcd is at revision %d, after the claim it was at %d", r.Header.Revision, first.Record.ModRevision)
	}
}

// A restart finds the lease that it left, and writes nothing.
func TestRestartKeepsLease(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	before := h.awaitHeld("").Own.Record
	h.stop()
	h = join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	after := h.awaitHeld("").Own.Record
	if !before.Equal(after) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	h.stop() // or the two would have each other's lease hold the key, in turn
	// Another TTL is another etcd lease.
	after = join(t, s, JoinConfig{HostID: "h1", TTL: time.Minute}, "192.0.2.1").
		await("changes its lease", func(u Update) bool { return u.Own.State == Held && u.Own.Record.LeaseID != before.LeaseID }).Own.Record
	if until, err := s.Expiry(t.Context(), after.LeaseID); err != nil || time.Until(until) > time.Minute {
		t.Errorf("expires %v, %v", until, err)
	}
}

func TestAdvertiseChangesTheLease(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	h.Advertise(advert("192.0.2.99"))
	h.await("says the new address", func(u Update) bool {
		return u.Own.State == Held && u.Own.Record.Endpoints[0].PublicIP.String() == "192.0.2.99"
	})
	if value, _ := etcd.get(t, subnets+key); !strings.Contains(value, "192.0.2.99") {
		t.Errorf("etcd holds %s", value)
	}
}

// What happens to the own key while it is held, and what becomes of it.
func TestOwnKeyIsPutRight(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(*testing.T, *server, string){
		"deleted": func(t *testing.T, etcd *server, key string) { etcd.del(t, key) },
		"expired": func(t *testing.T, etcd *server, key string) {
			_, id := etcd.get(t, key)
			if _, err := etcd.raw.Revoke(t.Context(), clientv3.LeaseID(id)); err != nil {
				t.Error(err)
			}
		},
		"junk":                  func(t *testing.T, etcd *server, key string) { etcd.put(t, key, "\x00junk") },
		"empty":                 func(t *testing.T, etcd *server, key string) { etcd.put(t, key, "") },
		"flannel on this host":  func(t *testing.T, etcd *server, key string) { lease(t, etcd, key, flannelValue("192.0.2.1")) },
		"older address of ours": func(t *testing.T, etcd *server, key string) { lease(t, etcd, key, hostValue("h1", "192.0.2.9")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", network)
			h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
			before := h.awaitHeld("").Own.Record
			want, _ := etcd.get(t, subnets+before.Key())
			harm(t, etcd, subnets+before.Key())
			h.await("holds it again", func(u Update) bool {
				return u.Own.State == Held && u.Own.Record.ModRevision > before.ModRevision+1 && u.Own.Record.Key() == before.Key()
			})
			value, id := etcd.get(t, subnets+before.Key())
			if value != want || id == 0 {
				t.Errorf("etcd holds %q with lease %x", value, id)
			}
		})
	}
}

// lease puts a key as a host does.
func lease(t testing.TB, etcd *server, key, value string) {
	t.Helper()
	l, err := etcd.raw.Grant(t.Context(), 3600)
	if err != nil {
		t.Fatal(err)
	}
	etcd.put(t, key, value, clientv3.WithLease(l.ID))
}

// An operator makes a reservation of a live lease, and takes it back.
func TestReservationOfOwnLease(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	mine := h.awaitHeld("").Own.Record
	if err := s.Reserve(t.Context(), mine.Lease); err != nil {
		t.Fatal(err)
	}
	u := h.await("has a reservation", func(u Update) bool { return u.Own.State == Held && u.Own.Record.LeaseID == 0 })
	if !u.Own.Expires.IsZero() || u.Own.Record.Key() != mine.Key() {
		t.Errorf("own: %+v", u.Own)
	}
	if err := s.Release(t.Context(), u.Own.Record); err != nil {
		t.Fatal(err)
	}
	h.await("has a lease again", func(u Update) bool {
		return u.Own.State == Held && u.Own.Record.LeaseID != 0 && u.Own.Record.Key() == mine.Key()
	})
}

// Another host's lease is never written over, whatever it took.
func TestTakenIsNotTakenBack(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"overlayd":                  hostValue("h2", "192.0.2.2"),
		"flannel":                   flannelValue("192.0.2.2"),
		"another id at our address": hostValue("h2", "192.0.2.1"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", network)
			h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
			key := h.awaitHeld("").Own.Record.Key()
			etcd.put(t, subnets+key, value)
			u := h.await("sees that it is taken", func(u Update) bool { return u.Own.State == Taken })
			if !strings.Contains(u.Own.Reason, "192.0.2.") || u.Own.Record.Key() != key {
				t.Errorf("own: %+v", u.Own)
			}
			h.Advertise(advert("192.0.2.1", "2001:db8::1")) // gives it a reason to write
			etcd.put(t, subnets+"10.5.200.0-24", hostValue("h9", "192.0.2.9"))
			h.awaitPeers("10.5.200.0-24") // and not the one that has our subnet
			if got, _ := etcd.get(t, subnets+key); got != value {
				t.Errorf("wrote %s over %s", got, value)
			}

			etcd.del(t, subnets+key)
			h.awaitHeld(key)

			etcd.put(t, subnets+key, value)
			h.await("sees that it is taken", func(u Update) bool { return u.Own.State == Taken })
			h.vacate()
			u = h.await("has another subnet", func(u Update) bool { return u.Own.State == Held })
			if u.Own.Record.Key() == key {
				t.Error("holds the subnet that it gave up")
			}
			h.awaitPeers(key, "10.5.200.0-24")
		})
	}
}

// While all is well a host keeps its subnet.
func TestAbandonOfHeldLease(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	before := h.awaitHeld("").Own.Record
	h.vacate()
	h.Advertise(advert("192.0.2.2"))
	after := h.await("says the new address", func(u Update) bool {
		return u.Own.State == Held && u.Own.Record.Endpoints[0].PublicIP.String() == "192.0.2.2"
	}).Own.Record
	if before.Key() != after.Key() {
		t.Errorf("moved from %s to %s", before.Key(), after.Key())
	}

	// When new leases are made elsewhere it gives the subnet up when it is told to, and not before.
	etcd.put(t, prefix+"/config", elsewhere(before.Key()))
	h.await("says that the subnet does not fit", func(u Update) bool {
		return u.Own.State == Held && strings.Contains(u.Own.Reason, "any more") && u.Own.Record.Key() == before.Key()
	})
	h.stop()
	h = join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.2")
	h.awaitHeld(before.Key())
	h.Vacant(before.Subnets())
	h.await("holds a subnet that fits", func(u Update) bool {
		return u.Own.State == Held && u.Own.Record.Key() != before.Key() && u.Own.Reason == ""
	})
}

// elsewhere is the network with new leases only in the half that the key is not in.
func elsewhere(key string) string {
	if ordinal, _ := strconv.Atoi(strings.Split(key, ".")[2]); ordinal < 128 {
		return strings.Replace(network, `"Backend"`, `"SubnetMin":"10.5.128.0","Backend"`, 1)
	}
	return strings.Replace(network, `"Backend"`, `"SubnetMax":"10.5.127.0","Backend"`, 1)
}

// Another daemon with our identity must not draw us into a race of writes.
func TestQuarrelIsSlow(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	begin := time.Now()
	const rounds = 7 // five at once, then one a second
	for i := range rounds {
		rev := etcd.put(t, subnets+key, hostValue("h1", fmt.Sprintf("192.0.2.%d", 100+i)))
		h.await("puts it right", func(u Update) bool { return u.Own.Record.ModRevision > rev })
	}
	if d := time.Since(begin); d < writeDelay {
		t.Errorf("%d writes within %v", rounds, d)
	}
}

// Another host that announces our address is a peer, and a problem that is told.
func TestAddressAnnouncedTwice(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.awaitHeld("")
	etcd.put(t, subnets+"10.5.200.0-24", hostValue("h2", "192.0.2.1"))
	h.await("tells", func(u Update) bool {
		return u.Own.State == Held && strings.Contains(u.Own.Reason, `this host's address by host "" (h2)`)
	})
	h.awaitPeers("10.5.200.0-24")
	etcd.del(t, subnets+"10.5.200.0-24")
	h.await("is content", func(u Update) bool { return u.Own.State == Held && u.Own.Reason == "" })
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	reg := prometheus.NewRegistry()
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1", Metrics: reg}, "192.0.2.1")
	h.awaitHeld("")
	etcd.put(t, subnets+"junk", "junk")
	keys := putPeers(t, etcd, 2)
	h.awaitPeers(keys...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "/" + l.GetValue()
			}
			if v := m.GetGauge().GetValue() + m.GetCounter().GetValue(); v != 0 { // all kinds are there from the start
				got[name] = v
			}
		}
	}
	if left := got["overlayd_lease_remaining_seconds"]; left < 23*3600 || left > 24*3600 {
		t.Errorf("%v seconds remain", left)
	}
	delete(got, "overlayd_lease_remaining_seconds")
	want := map[string]float64{
		"overlayd_leases": 3, "overlayd_etcd_up": 1, "overlayd_etcd_events_total": 4, "overlayd_lease_errors_total/skipped": 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
