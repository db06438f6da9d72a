package etcdstore

import (
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet/leasecache"
)

// A copy of a host gets no lease of that host's, whether it lives, is away for a moment or for long, or cannot be heard;
// and nobody hears of the copy.
func TestCopyNeverServes(t *testing.T) {
	t.Parallel()
	for name, meanwhile := range map[string]func(t *testing.T, first *host, p *proxy){
		"the first lives":   func(*testing.T, *host, *proxy) {},
		"the first is down": func(_ *testing.T, first *host, _ *proxy) { first.stop() },
		"the first is cut off": func(_ *testing.T, first *host, p *proxy) {
			p.set(refuse)
			first.await("has lost etcd", func(u Update) bool { return !u.Connected })
		},
		"the first stalls": func(_ *testing.T, _ *host, p *proxy) { p.set(swallow) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", network)
			p := startProxy(t, etcd.addr())
			first := join(t, openStore(t, p.endpoint()), JoinConfig{HostID: "h1", Host: "alpha"}, "192.0.2.1")
			key := first.awaitHeld("").Own.Record.Key()
			before, _ := etcd.get(t, subnets+key)
			meanwhile(t, first, p)

			s := openStore(t, etcd.Endpoint())
			last := leasecache.View{NIC: "02:00:00:00:00:01"}
			copies := []*host{
				join(t, s, JoinConfig{HostID: "h1", Last: last, Previous: mustSubnets(t, key)}, "192.0.2.2"),
				join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.3"),
			}
			for _, c := range copies {
				u := c.await("sees that it is a copy", func(u Update) bool { return u.Own.State == Copied })
				if !strings.Contains(u.Own.Reason, `host "alpha" (h1) at 192.0.2.1, which has subnet `+key) {
					t.Errorf("reason %q", u.Own.Reason)
				}
			}
			time.Sleep(100 * time.Millisecond) // for what must not happen
			r, err := etcd.raw.Get(t.Context(), "/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
			if now, _ := etcd.get(t, subnets+key); now != before || err != nil || r.Header.Revision != 3 {
				t.Errorf("etcd is at revision %d, the lease %s, was %s", r.Header.Revision, now, before)
			}
			// With an identity of its own it is a host like others.
			l := advert("192.0.2.2")
			l.HostID = "h9"
			copies[0].Advertise(l)
			if own := copies[0].awaitHeld("").Own.Record; own.Key() == key || own.HostID != "h9" {
				t.Errorf("has %s of %s", own.Key(), own.HostID)
			}
			p.set(pass)
			if name == "the first is down" {
				first = join(t, openStore(t, p.endpoint()), JoinConfig{HostID: "h1", Host: "alpha"}, "192.0.2.1")
			}
			first.await("holds its lease", func(u Update) bool { return u.Connected && u.Own.State == Held && u.Own.Record.Key() == key })
			if now, _ := etcd.get(t, subnets+key); now != before {
				t.Errorf("the lease is %s, was %s", now, before)
			}
		})
	}
}

// A copy that came first, while nobody had the lease, has it: then the other is the copy.
func TestIdentityIsOfWhoHoldsTheLease(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	first := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := first.awaitHeld("").Own.Record.Key()
	first.stop()
	etcd.del(t, subnets+key) // it has expired
	second := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.2")
	second.awaitHeld(key)
	join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1").await("is the copy now", func(u Update) bool { return u.Own.State == Copied })
	second.awaitHeld(key)
}

// A host of the address that another announces gets a lease all the same, and both say so until one is gone: who had the
// address before may be long gone.
func TestTwoHostsOfOneAddress(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	first := join(t, s, JoinConfig{HostID: "h1", Host: "alpha"}, "192.0.2.1")
	key := first.awaitHeld("").Own.Record.Key()
	second := join(t, s, JoinConfig{HostID: "h2", Host: "beta"}, "192.0.2.1")
	for _, tc := range []struct {
		h    *host
		name string
	}{{first, `"beta" (h2)`}, {second, `"alpha" (h1)`}} {
		tc.h.await("says so", func(u Update) bool {
			return u.Own.State == Held && strings.Contains(u.Own.Reason, "is announced with this host's address by host "+tc.name)
		})
	}
	if keys := etcd.keys(t); len(keys) != 2 {
		t.Errorf("leases %v", keys)
	}
	first.stop()
	etcd.del(t, subnets+key)
	second.await("is content", func(u Update) bool { return u.Own.State == Held && u.Own.Reason == "" })
}
