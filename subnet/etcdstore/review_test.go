package etcdstore

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What etcd told is not lost when the connection fails before the reader of the mirror has taken it: the watch goes on
// behind it.
func TestCutLosesNoEvent(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	m := newMirror(s.client, s.log, keyRange{s.leasePrefix(), true})
	go m.Run(t.Context())
	heard, want := 0, 0
	for round := range 5 {
		for { // until etcd is followed
			news := <-m.told
			if e, ok := news.(events); ok {
				heard += len(e.all)
			}
			if l, ok := news.(linked); ok {
				for i := range 5 {
					etcd.put(t, subnets+peerKey(10*round+i), peerValue(i))
					want++
				}
				eventually(t, "the reader is behind", func() bool { return len(m.told) == cap(m.told) })
				time.Sleep(20 * time.Millisecond) // and the mirror waits for it
				l.fail(errors.New("the connection breaks"))
				time.Sleep(20 * time.Millisecond)
				break
			}
		}
	}
	etcd.put(t, subnets+peerKey(99), peerValue(99))
	for last := ""; last != subnets+peerKey(99); {
		if e, ok := (<-m.told).(events); ok {
			heard += len(e.all)
			last = string(e.all[len(e.all)-1].Kv.Key)
		}
	}
	if heard != want+1 {
		t.Errorf("heard of %d changes of %d", heard, want+1)
	}
}

// A move that is seen before etcd has said that it did it, or whose answer is lost, is no loss of the lease.
func TestMoveIsSeenFirst(t *testing.T) {
	t.Parallel()
	s := newScene(t, network)
	s.past.subnets = prefixes(t, "10.5.7.0-24")
	s.do(true)
	s.network = mustNetwork(t, dualNetwork)
	s.set.SetNetwork(s.network)
	w := s.decide().write
	s.put(w.from.Key(), "", 0)
	s.put(w.key, string(w.value), w.leaseID)
	wantSteps(t, []string{s.decide().text()}, "held")
	if s.last.Key() != w.key || s.key != w.key {
		t.Errorf("holds %s, and says %s", s.key, s.last.Key())
	}
	s.done(w, s.revision)
	wantSteps(t, []string{s.decide().text()}, "held")
}

// A lease that moves would be younger than a key of somebody else that overlaps it and did not count before: it stays.
func TestMoveBesideAnother(t *testing.T) {
	t.Parallel()
	s := newScene(t, network)
	s.past.subnets = prefixes(t, "10.5.7.0-24")
	s.do(true)
	s.put("10.5.6.0-23", hostValue("h9", "192.0.2.9"), 9)
	s.network = mustNetwork(t, dualNetwork)
	s.set.SetNetwork(s.network)
	wantSteps(t, []string{s.decide().text()}, "held: the network does not lease subnet 10.5.7.0-24 any more, and another would be younger than 10.5.6.0-23…")
	s.put("10.5.6.0-23", "", 0)
	wantSteps(t, s.do(true), "held, moves from 10.5.7.0-24 to 10.5.7.0-24&fd00:5:0:7::-64 with lease 3", "held")
}

// If such a key came at the last moment, it has the subnet: the host does not say that it holds it, nor moves on and on.
func TestMoveLosesToAnother(t *testing.T) {
	t.Parallel()
	for name, had := range map[string]bool{"running": true, "started": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, network)
			s.past.subnets = prefixes(t, "10.5.7.0-24")
			if had {
				s.do(true)
			} else {
				s.put("10.5.7.0-24", hostValue("h1", "192.0.2.1"), 3)
				s.grant.id = 3
			}
			s.network = mustNetwork(t, dualNetwork)
			s.set.SetNetwork(s.network)
			w := s.decide().write
			s.put("10.5.6.0-23", hostValue("h9", "192.0.2.9"), 9)
			s.put(w.from.Key(), "", 0)
			s.put(w.key, string(w.value), w.leaseID)
			s.done(w, s.revision)
			if had {
				d := s.decide()
				wantSteps(t, []string{d.text()}, "taken: lease 10.5.7.0-24&fd00:5:0:7::-64: overlaps lease 10.5.6.0-23, which is older")
				if !slices.Equal(d.leaves, prefixes(t, "10.5.7.0-24")) { // the other half no container ever had
					t.Errorf("leaves %s", d.leaves)
				}
				s.vacant = true
			}
			steps := s.do(true)
			if steps[len(steps)-1] != "held" || s.key == w.key {
				t.Errorf("holds %s: %q", s.key, steps)
			}
		})
	}
}

// A network config that waits for a lease to go is followed also if that went while the host was cut off, and etcd has
// forgotten when.
func TestConfigWaitsForNoLeaseThatIsGone(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	etcd.put(t, subnets+"10.5.200.0-24", hostValue("h2", "192.0.2.2"))
	p := startProxy(t, etcd.addr())
	h := join(t, openStore(t, p.endpoint()), JoinConfig{HostID: "h1", Previous: prefixes(t, "10.5.7.0-24")}, "192.0.2.1")
	h.awaitHeld("10.5.7.0-24")
	p.set(refuse)
	h.await("is cut off", func(u Update) bool { return !u.Connected })
	const next = `{"Network":"10.5.0.0/17","Backend":{"Type":"vxlan"}}`
	etcd.del(t, subnets+"10.5.200.0-24")
	rev := etcd.put(t, prefix+"/config", next)
	if _, err := etcd.raw.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	p.set(pass)
	h.await("follows the config", func(u Update) bool { return u.Connected && u.Err == nil && string(u.Config) == next })
}

// An etcd that answers, and fails whatever is written, is not asked, nor connected to, without a pause.
func TestFailingEtcdIsGivenTime(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	p := startProxy(t, etcd.addr())
	s := openStore(t, p.endpoint())
	var last, longest atomic.Int64 // when it was asked, and how long not
	s.client.dialOptions = append(s.client.dialOptions, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if txn, ok := req.(*etcdserverpb.TxnRequest); !ok || len(txn.Compare) == 0 { // it writes nothing
				return invoke(ctx, name, req, reply, cc, opts...)
			}
			now := time.Now().UnixNano()
			if before := last.Swap(now); before != 0 {
				longest.Store(max(longest.Load(), now-before))
			}
			return status.Error(codes.DataLoss, "etcdserver: corrupt cluster")
		}))
	join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	eventually(t, "the host waits", func() bool { return time.Duration(longest.Load()) > maxBackoff/3 })
	if n := p.used(); n > 20 {
		t.Errorf("connected %d times until it did", n)
	}
}

// A host that follows a reservation has lost nothing, and does not say so.
func TestFollowingReservationIsNoLoss(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	var log counter
	s.log = log.logger()
	h := join(t, s, JoinConfig{HostID: "h1", Previous: prefixes(t, "10.5.7.0-24")}, "192.0.2.1")
	h.awaitHeld("10.5.7.0-24")
	etcd.put(t, subnets+"10.5.8.0-24", `{"HostID":"h1"}`)
	h.await("may leave its subnet", func(u Update) bool { return len(u.Own.Leaves) > 0 })
	h.vacate()
	h.awaitHeld("10.5.8.0-24")
	if n := log.count("lease is lost"); n > 0 {
		t.Errorf("said %d times that the lease is lost", n)
	}
}

// A move of which the answer is lost with the connection has happened: the host goes on with the half that it has.
func TestAnswerToMoveIsLost(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	var lose atomic.Bool
	s.client.dialOptions = append(s.client.dialOptions, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, name, req, reply, cc, opts...)
			if strings.HasSuffix(name, "/Txn") && lose.Swap(false) {
				return status.Error(codes.Unavailable, "the connection broke")
			}
			return err
		}))
	h := newHost(t, s, JoinConfig{HostID: "h1"})
	var lost atomic.Bool
	h.tell = func(u Update) { lost.Store(lost.Load() || u.Own.State == Taken) }
	h.start()
	h.Advertise(advert("192.0.2.1", "2001:db8::1"))
	before := h.awaitHeld("").Own.Record
	lose.Store(true)
	etcd.put(t, prefix+"/config", dualNetwork)
	after := h.await("has both families", func(u Update) bool {
		return u.Own.State == Held && u.Connected && len(u.Own.Record.Endpoints) == 2
	}).Own.Record
	eventually(t, "the answer is lost", func() bool { return !lose.Load() })
	if after.Subnets()[0] != before.Subnets()[0] || lost.Load() {
		t.Errorf("had %s, has %s; was taken: %v", before.Key(), after.Key(), lost.Load())
	}
}

// What is vacant is not forgotten for something else that is.
func TestVacantTwice(t *testing.T) {
	t.Parallel()
	m := openStore(t, "http://127.0.0.1:1").Join(JoinConfig{HostID: "h1"})
	m.Vacant(prefixes(t, "10.5.7.0-24"))
	m.Vacant(prefixes(t, "10.5.8.0-24"))
	m.Advertise(Wish{Lease: advert("192.0.2.1")})
	if got := m.hearWishes(time.Now()); len(got) != 2 {
		t.Errorf("vacant: %s", got)
	}
}

// After a second restore of a backup the hosts write much the same as after the first, in much the same order: that the
// last change is as it was does not say that all are.
func TestRestoredTwice(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	addr := etcd.addr()
	etcd.put(t, prefix+"/config", network)
	proxy := startProxy(t, addr)
	h := join(t, openStore(t, proxy.endpoint()), JoinConfig{HostID: "h1", Grace: time.Second}, "192.0.2.1")
	h.awaitHeld("")
	etcd.Close()
	backup := copyDir(t, etcd.dir)
	etcd = startEtcdIn(t, etcd.dir, addr)
	etcd.put(t, subnets+peerKey(1), peerValue(1))
	etcd.put(t, subnets+peerKey(2), peerValue(2))
	h.awaitPeers(peerKey(1), peerKey(2))
	proxy.set(refuse)
	etcd.Close()
	etcd = startEtcdIn(t, backup, addr)
	etcd.put(t, subnets+peerKey(3), peerValue(3))
	etcd.put(t, subnets+peerKey(2), peerValue(2))
	proxy.set(pass)
	h.awaitPeers(peerKey(2), peerKey(3)) // when the time of grace is over
}

// What the host says that it holds is what it holds, also when it wants to say something else as soon as it has moved, and
// when somebody writes over where it moved to.
func TestMoveAndMore(t *testing.T) {
	t.Parallel()
	for name, over := range map[string]string{"another wish": "", "junk": "junk"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, network)
			s.past.subnets = prefixes(t, "10.5.7.0-24")
			s.do(true)
			s.network = mustNetwork(t, dualNetwork)
			s.set.SetNetwork(s.network)
			w := s.decide().write
			s.put(w.from.Key(), "", 0)
			s.put(w.key, string(w.value), w.leaseID)
			s.done(w, s.revision)
			s.wrote = 0 // it listed anew
			if over != "" {
				s.put(w.key, over, w.leaseID)
			} else {
				s.wish.Endpoints[0].PublicIP = netip.MustParseAddr("192.0.2.77")
			}
			d := s.decide()
			s.done(d.write, s.revision+1) // and has not seen it
			if d = s.decide(); d.state == Held && s.last.Key() != w.key {
				t.Errorf("says that it holds %s: %s", s.last.Key(), d.text())
			}
			s.put(w.key, string(d.write.value), w.leaseID)
			wantSteps(t, s.do(true), "held")
			if s.last.Key() != w.key {
				t.Errorf("holds %s", s.last.Key())
			}
		})
	}
}

// What etcd refused is no trouble any more when the host does not want it any more.
func TestRefusalIsForgotten(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	var deny atomic.Bool
	s.client.dialOptions = append(s.client.dialOptions, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if txn, ok := req.(*etcdserverpb.TxnRequest); ok && len(txn.Compare) > 0 && deny.Load() {
				return status.Error(codes.PermissionDenied, "etcdserver: permission denied")
			}
			return invoke(ctx, name, req, reply, cc, opts...)
		}))
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.awaitHeld("")
	deny.Store(true)
	h.Advertise(advert("192.0.2.9"))
	h.await("says that etcd refuses", func(u Update) bool { return strings.Contains(u.Own.Reason, "refuses") })
	h.Advertise(advert("192.0.2.1"))
	h.await("says that all is well", func(u Update) bool { return u.Own.State == Held && u.Own.Reason == "" })
}

// Junk where a lease was that is lost gives it back to nobody: another host may have an address of it since.
func TestJunkAfterLoss(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ other, want string }{
		"lost":  {"", "claiming, changes 10.5.7.0-24 with lease 3"},
		"taken": {hostValue("h9", "192.0.2.9"), "taken: subnet 10.5.7.0-24 overlaps 10.5.6.0-23, which belongs to host \"\" (h9) at 192.0.2.9 now"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, network)
			s.past.subnets = prefixes(t, "10.5.7.0-24")
			s.do(true)
			s.put("10.5.7.0-24", "", 0)
			s.put("10.5.6.0-23", tc.other, 9)
			s.decide()
			s.put("10.5.7.0-24", "junk", 5)
			wantSteps(t, []string{s.decide().text()}, tc.want)
		})
	}
}

// A host that moves the lease of an earlier run holds none before that is seen.
func TestMoveAtStart(t *testing.T) {
	t.Parallel()
	s := newScene(t, dualNetwork)
	s.put("10.5.7.0-24", hostValue("h1", "192.0.2.1"), 3)
	s.grant.id = 3
	w := s.decide().write
	s.done(w, s.revision+1)
	if d := s.decide(); d.state != Claiming {
		t.Errorf("before the move is seen: %s", d.text())
	}
	s.put(w.from.Key(), "", 0)
	s.revision--
	s.put(w.key, string(w.value), w.leaseID)
	wantSteps(t, s.do(true), "held")
}
