package etcdstore

import (
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// memory is a host's state directory, and the clocks of its machine.
type memory struct {
	dir string
	now leasecache.Moment
}

// join runs a host that remembers.
func (m *memory) join(t *testing.T, s *Store, id, nic string, addr string) *host {
	t.Helper()
	cache, last := leasecache.Open(m.dir, id, func() leasecache.Moment { return m.now })
	cfg := JoinConfig{HostID: id, Cache: cache, Last: last, TTL: time.Minute}
	if last.Last != nil {
		cfg.Previous = last.Last.Subnets()
	}
	h := join(t, s, cfg)
	l := advert(addr)
	h.Member.Advertise(Wish{Lease: l, NIC: nic, Config: []byte(network)})
	return h
}

// What a host remembers of its lease counts while etcd is silent, on the machine that held it, as long as the lease can be
// there; and what keeps it from counting is said.
func TestRemembersItsLease(t *testing.T) {
	t.Parallel()
	const nic, other = "02:00:00:00:00:01", "02:00:00:00:00:02"
	for name, tc := range map[string]struct {
		meanwhile func(*memory)
		id        string // empty: the same
		nic       string
		addr      string
		lost      bool   // another host had the subnet when it was last seen
		reason    string // empty: it is held
	}{
		"for longer than the TTL": {
			meanwhile: func(m *memory) { m.now.Up += 2 * time.Minute; m.now.Wall = m.now.Wall.Add(2 * time.Minute) },
			nic:       nic, addr: "192.0.2.1", reason: "ended at",
		},
		"over a boot, for longer than the TTL": {
			meanwhile: func(m *memory) { m.now.Boot = "b"; m.now.Wall = m.now.Wall.Add(2 * time.Minute) },
			nic:       nic, addr: "192.0.2.1", reason: "ended at",
		},
		"over a boot, and the clock went back": {
			meanwhile: func(m *memory) { m.now.Boot = "b"; m.now.Wall = m.now.Wall.Add(-time.Hour) },
			nic:       nic, addr: "192.0.2.1", reason: "clock",
		},
		"of another identity":          {id: "h2", nic: nic, addr: "192.0.2.1", reason: "another host's"},
		"that it had lost":             {nic: nic, addr: "192.0.2.1", lost: true, reason: "was lost"},
		"on a copy of the machine":     {meanwhile: func(m *memory) { m.now.Boot = "b" }, nic: other, addr: "192.0.2.9", reason: "may be a copy"},
		"on the machine, moved":        {meanwhile: func(m *memory) { m.now.Boot = "b" }, nic: nic, addr: "192.0.2.9"},
		"on the machine, another card": {meanwhile: func(m *memory) { m.now.Boot = "b" }, nic: other, addr: "192.0.2.1"},
		"in the same boot":             {nic: other, addr: "192.0.2.9"},
		"over a boot":                  {meanwhile: func(m *memory) { m.now.Boot = "b"; m.now.Wall = m.now.Wall.Add(10 * time.Second) }, nic: nic, addr: "192.0.2.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", network)
			etcd.put(t, subnets+peerKey(1), peerValue(1))
			p := startProxy(t, etcd.addr())
			s := openStore(t, p.endpoint())
			m := &memory{dir: t.TempDir(), now: leasecache.Moment{Boot: "a", Up: time.Hour, Wall: time.Now(), Trusted: true}}
			first := m.join(t, s, "h1", nic, "192.0.2.1")
			key := first.awaitHeld("").Own.Record.Key()
			first.awaitPeers(peerKey(1))
			if tc.lost {
				etcd.put(t, subnets+key, hostValue("h2", "192.0.2.2"))
				first.await("has lost it", func(u Update) bool { return u.Own.State == Taken })
			}
			first.stop()
			p.set(refuse)
			if tc.meanwhile != nil {
				tc.meanwhile(m)
			}
			id := "h1"
			if tc.id != "" {
				id = tc.id
			}
			again := m.join(t, s, id, tc.nic, tc.addr)
			u := again.await("goes by what it remembers", func(u Update) bool { return u.Remembered })
			if tc.reason != "" {
				u = again.await("says why it does not hold its lease", func(u Update) bool { return strings.Contains(u.Own.Reason, tc.reason) })
				if u.Own.State == Held {
					t.Errorf("holds %s", u.Own.Record.Key())
				}
				return
			}
			u = again.awaitHeld(key)
			if !u.Complete || u.Connected || string(u.Config) != network || u.Own.Expires.IsZero() || u.Err == nil {
				t.Errorf("from memory: %+v", u)
			}
			again.awaitPeers(peerKey(1))
			p.set(pass)
			u = again.await("is back", func(u Update) bool { return u.Connected && u.Own.State == Held && !u.Remembered })
			if u.Own.Record.Key() != key || again.goneCount(peerKey(1)) > 0 {
				t.Errorf("with etcd again: %+v", u.Own)
			}
		})
	}
}

// A lease that is served from memory is served no longer than it can be there.
func TestRememberedLeaseEnds(t *testing.T) {
	t.Parallel()
	own := subnet.Record{Lease: leaseFor(advert("192.0.2.1"), mustSubnets(t, "10.5.7.0-24")), LeaseID: 5}
	own.HostID = "h1"
	last := leasecache.View{Config: []byte(network), Own: &own, Last: &own, SameBoot: true, Expires: time.Now().Add(rememberAfter + time.Second)}
	h := join(t, openStore(t, "http://127.0.0.1:1"), JoinConfig{HostID: "h1", Last: last}, "192.0.2.1")
	h.awaitHeld("10.5.7.0-24")
	h.await("says that it has ended", func(u Update) bool { return u.Own.State == Waiting && strings.Contains(u.Own.Reason, "has ended") })
	if time.Now().Before(last.Expires) {
		t.Error("before it has")
	}
}
