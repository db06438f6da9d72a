package etcdstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet"
)

// Hosts that share an etcd with others, who write much and compact often, do not list anew when a connection is cut: they
// know up to where they were told everything, also when nothing was for them.
func TestReconnectAfterCompactionListsNothing(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	keys := putPeers(t, etcd, 5)
	p := startProxy(t, etcd.addr())
	var log counter
	s := openStore(t, p.endpoint())
	s.log = log.logger()
	h := newHost(t, s, JoinConfig{HostID: "h1"})
	h.mirror.least = 40 * time.Millisecond
	h.start()
	h.Advertise(advert("192.0.2.1"))
	h.awaitHeld("")
	h.awaitPeers(keys...)
	for round := range 3 {
		var rev int64
		for i := range 300 {
			rev = etcd.put(t, fmt.Sprint("/registry/x", i%10), "y")
		}
		for i := range 4 { // the host asks again and again how far it was told all
			time.Sleep(2 * h.mirror.least)
			etcd.put(t, fmt.Sprint("/registry/x", i), "z")
		}
		if _, err := etcd.raw.Compact(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
		p.set(refuse)
		h.await("is cut off", func(u Update) bool { return !u.Connected })
		etcd.put(t, subnets+peerKey(10+round), peerValue(10+round))
		etcd.del(t, subnets+keys[0]) // the newest key that it knows may be gone
		keys = append(keys[1:], peerKey(10+round))
		p.set(pass)
		h.awaitPeers(keys...)
	}
	if n := log.count("listing the leases anew"); n > 0 {
		t.Errorf("listed anew %d times", n)
	}
}

// Whatever is heard when, and while an answer is waited for, the mirror sleeps between two questions.
func TestRhythmNeverSpins(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for heard := range 120 {
		for asked := range 59 {
			for _, verifying := range []time.Time{{}, now.Add(-time.Second)} {
				r := rhythm{now.Add(-time.Duration(heard) * 100 * time.Millisecond), now.Add(-time.Duration(asked) * 100 * time.Millisecond), verifying, 6 * time.Second}
				if r.silent(now) {
					r.verifying = now
				}
				if next := r.next(now); next <= 0 || next > r.pause {
					t.Fatalf("heard %v ago, asked %v ago, verifying %t: next in %v", now.Sub(r.heard), now.Sub(r.asked), !verifying.IsZero(), next)
				}
			}
		}
	}
}

// Values of a size that no lease has do not keep a host from reading the others.
func TestListingOfLargeValues(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	keys := putPeers(t, etcd, 5)
	for i := range 30 { // more than one answer may have
		etcd.put(t, fmt.Sprintf("%sjunk%d", subnets, i), strings.Repeat("x", 1<<20))
	}
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.awaitHeld("")
	h.awaitPeers(keys...)
}

// What lives below the prefix beside the config and the leases is not for a member, who does not hear of it.
func TestMemberHearsOfItsOwnKeysOnly(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	m := newMirror(s.client, s.log, keyRange{key: s.configKey()}, keyRange{s.leasePrefix(), true})
	go m.Run(t.Context())
	var heard []string
	note := func() {
		switch n := (<-m.told).(type) {
		case page:
			for _, kv := range n.kvs {
				heard = append(heard, string(kv.Key))
			}
		case events:
			for _, ev := range n.all {
				heard = append(heard, string(ev.Kv.Key))
			}
		case linked:
			for _, key := range []string{"/overlayd/endpoints/x", "/overlayd/policy/y", "/config2", "/subnetsx", "/overlayd/claims"} {
				etcd.put(t, prefix+key, "not for members")
			}
			etcd.put(t, subnets+peerKey(1), peerValue(1))
		}
	}
	for len(heard) < 2 {
		note()
	}
	if want := fmt.Sprint([]string{prefix + "/config", subnets + peerKey(1)}); fmt.Sprint(heard) != want {
		t.Errorf("heard of %s", heard)
	}
}

// A slow or hanging write delays no peer's event.
func TestSlowWriteDelaysNoEvent(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	hang := hangOn(t, s, "/Txn")
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	<-hang // the claim is under way
	etcd.put(t, subnets+peerKey(1), peerValue(1))
	h.awaitPeers(peerKey(1))
	h.mu.Lock()
	state := h.last.Own.State
	h.mu.Unlock()
	if state != Claiming {
		t.Errorf("the claim is %s", state)
	}
	close(hang)
	h.awaitHeld("")
}

// Turning a family on and off beside running hosts changes no subnet that a host has, and needs no more subnets.
func TestFamilyIsTurnedOnAndOff(t *testing.T) {
	t.Parallel()
	const small, smallDual = `{"Network":"10.5.0.0/22","SubnetLen":24,"SubnetMin":"10.5.0.0"}`,
		`{"Network":"10.5.0.0/22","SubnetLen":24,"SubnetMin":"10.5.0.0","EnableIPv6":true,"IPv6Network":"fd00:5::/62","IPv6SubnetMin":"fd00:5::"}`
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", small)
	s := openStore(t, etcd.Endpoint())
	var hosts []*host
	before := map[*host]subnet.Record{}
	for i := range 4 { // it is full
		h := join(t, s, JoinConfig{HostID: fmt.Sprint("h", i)}, fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("2001:db8::%x", i+1))
		hosts = append(hosts, h)
		before[h] = h.awaitHeld("").Own.Record
	}
	same := func(families int) {
		t.Helper()
		for _, h := range hosts {
			own := h.await("has its half", func(u Update) bool {
				return u.Own.State == Held && u.Own.Reason == "" && len(u.Own.Record.Endpoints) == families
			}).Own.Record
			if own.Subnets()[0] != before[h].Subnets()[0] {
				t.Errorf("%s has %s, had %s", h.cfg.HostID, own.Key(), before[h].Key())
			}
			if own.LeaseID != before[h].LeaseID {
				t.Errorf("%s has another lease of etcd's", h.cfg.HostID)
			}
		}
		for _, h := range hosts {
			eventually(t, "all know each other", func() bool { return len(h.peerKeys()) == 3 })
		}
	}
	etcd.put(t, prefix+"/config", smallDual)
	same(2)
	for i, h := range hosts { // and when IPv6 is turned off while they are down
		h.stop()
		own := h.last.Own.Record
		hosts[i] = newHost(t, s, JoinConfig{HostID: h.cfg.HostID, Previous: own.Subnets()})
		before[hosts[i]] = before[h]
	}
	etcd.put(t, prefix+"/config", small)
	for i, h := range hosts {
		h.start()
		h.Advertise(advert(fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("2001:db8::%x", i+1)))
	}
	same(1)
}
