package etcdembed

import (
	"context"
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/overlayd/overlayd/subnet/who"
)

// TestHostsMay does what hosts do, flannel's among them, and what an operator does and who comes by the unix socket.
func TestHostsMay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	ok := func(what string, _ any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	const ofB = subnets + "10.5.2.0-24"
	own := clientv3.WithLease(r.leaseB)

	got, err := r.b.Get(ctx, subnets, clientv3.WithPrefix())
	if ok("list", got, err); err == nil && len(got.Kvs) != 2 {
		t.Errorf("list: %v", got)
	}
	_, err = r.b.Get(ctx, hosts, clientv3.WithPrefix())
	ok("list hosts", nil, err)
	_, err = r.b.Status(ctx, r.server.Endpoint())
	ok("status", nil, err)
	_, err = r.b.MemberList(ctx)
	ok("members", nil, err)
	_, err = r.b.TimeToLive(ctx, r.leaseA)
	ok("when another's lease ends", nil, err)
	_, err = r.b.KeepAliveOnce(ctx, r.leaseB)
	ok("renew", nil, err)

	// A put that compares nothing, as flanneld renews.
	put, err := r.b.Put(ctx, ofB, value(hostB, "192.0.2.2"), own, clientv3.WithPrevKV())
	if ok("put", nil, err); err == nil && (put.Header.GetRevision() == 0 || put.PrevKv == nil) {
		t.Errorf("answer %v", put)
	}
	// Who is too late is told so, as without a gate.
	late, err := r.b.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(subnets+"10.5.1.0-24"), "=", 0)).
		Then(clientv3.OpPut(subnets+"10.5.1.0-24", value(hostB, "192.0.2.2"), own)).Else(clientv3.OpGet(subnets + "10.5.1.0-24")).Commit()
	if ok("too late", nil, err); err == nil && (late.Succeeded || len(late.Responses[0].GetResponseRange().Kvs) != 1) {
		t.Errorf("too late: %v", late)
	}
	// A lease that etcd does not know.
	if _, err := r.b.Put(ctx, subnets+"10.5.8.0-24", value(hostB, "192.0.2.2"), clientv3.WithLease(77)); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("with a lease that there is not: %v", err)
	}
	if _, err := r.b.Revoke(ctx, 77); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("revoke a lease that there is not: %v", err)
	}
	// A move: one key for another.
	moved, err := r.b.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(ofB), ">", 0), clientv3.Compare(clientv3.ModRevision(testPrefix+"/config"), ">", 0)).
		Then(clientv3.OpPut(subnets+"10.5.3.0-24", value(hostB, "192.0.2.2"), own), clientv3.OpDelete(ofB)).Commit()
	if ok("move", nil, err); err == nil && !moved.Succeeded {
		t.Errorf("move: %v", moved)
	}
	del, err := r.b.Delete(ctx, subnets+"10.5.3.0-24")
	if ok("give back", nil, err); err == nil && del.Deleted != 1 {
		t.Errorf("give back: %v", del)
	}

	// Reservations, by host id and by address: they are taken, and stay without an end.
	for key, v := range map[string]string{"10.5.4.0-24": `{"PublicIP":"0.0.0.0","HostID":"bbbb"}`, "10.5.5.0-24": `{"PublicIP":"192.0.2.2"}`} {
		_, err = r.operator.Put(ctx, subnets+key, v)
		ok("reserve", nil, err)
		_, err = r.b.Put(ctx, subnets+key, value(hostB, "192.0.2.2"))
		ok("take "+v, nil, err)
	}
	// What the host had before it lost its identity, at its address.
	_, err = r.operator.Put(ctx, subnets+"10.5.6.0-24", value("lost", "192.0.2.2"))
	ok("the former", nil, err)
	_, err = r.b.Put(ctx, subnets+"10.5.6.0-24", value(hostB, "192.0.2.2"), own)
	ok("take back", nil, err)

	// A certificate without a host id, as flanneld has one: bound by its addresses, or by where it comes from.
	flannel := r.claim(r.old, "10.5.20.0-24", "", "192.0.2.3")
	_, err = r.old.Put(ctx, subnets+"10.5.20.0-24", value("", "192.0.2.3"), clientv3.WithLease(flannel))
	ok("flannel's renewal", nil, err)
	_, err = r.operator.Put(ctx, subnets+"10.5.21.0-24", `{"PublicIP":"0.0.0.0","HostID":"old"}`)
	ok("reserve", nil, err)
	_, err = r.old.Put(ctx, subnets+"10.5.21.0-24", value("old", "192.0.2.3"))
	ok("take a reservation", nil, err)

	for name, c := range map[string]*clientv3.Client{"operator": r.operator, "unix socket": r.local} {
		put, err := c.Put(ctx, testPrefix+"/config", "{}")
		if ok(name, nil, err); err != nil {
			continue
		}
		_, err = c.Get(ctx, tokens+"t")
		ok(name, nil, err)
		_, err = c.Compact(ctx, put.Header.Revision)
		ok(name, nil, err)
	}
}

// TestGateBeforeItKnows tells hosts to come again while it is not known yet who is of the network.
func TestGateBeforeItKnows(t *testing.T) {
	t.Parallel()
	var a admitted
	for _, w := range []who.Who{{Host: "a"}, {}} {
		if _, err := a.membership(w); status.Code(err) != codes.Unavailable {
			t.Errorf("%v: %v", w, err)
		}
	}
	a.set([]string{"a"})
	a.set([]string{"a"}) // as it was
	m, err := a.membership(who.Who{Host: "a"})
	if err != nil || m.Err() != nil {
		t.Fatal(err)
	}
	a.set(nil)
	if status.Code(context.Cause(m)) != codes.PermissionDenied {
		t.Errorf("gone between two lists: %v", context.Cause(m))
	}
}

// TestGateAfterCompaction goes on when etcd has forgotten what the gate has not heard yet: removals are heard of.
func TestGateAfterCompaction(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	for range 3 {
		if _, err := r.operator.Delete(ctx, hosts+hostB); err != nil {
			t.Fatal(err)
		}
		put, err := r.operator.Put(ctx, hosts+"x", "{}")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.operator.Compact(ctx, put.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "b is out", func() error {
			if _, err := r.b.Get(ctx, testPrefix+"/config"); status.Code(err) != codes.PermissionDenied {
				return errors.New("b is in")
			}
			return nil
		})
		if _, err := r.operator.Put(ctx, hosts+hostB, "{}"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "b is in", func() error { _, err := r.b.Get(ctx, testPrefix+"/config"); return err })
	}
}

// BenchmarkGate is what the gate costs: the same requests of an operator, whom it lets pass, and of a host.
func BenchmarkGate(b *testing.B) {
	r := newRig(b)
	const ofB = subnets + "10.5.2.0-24"
	for name, c := range map[string]*clientv3.Client{"operator": r.operator, "host": r.b} {
		b.Run("Range/"+name, func(b *testing.B) {
			for b.Loop() {
				if _, err := c.Get(b.Context(), ofB); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("Txn/"+name, func(b *testing.B) {
			for b.Loop() {
				_, err := c.Txn(b.Context()).If(clientv3.Compare(clientv3.ModRevision(ofB), ">", 0)).
					Then(clientv3.OpPut(ofB, value(hostB, "192.0.2.2"), clientv3.WithLease(r.leaseB))).Commit()
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
