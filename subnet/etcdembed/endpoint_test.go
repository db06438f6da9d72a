package etcdembed

import (
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestOwnEndpoints has a host do with its endpoints what a host has to: write many together, move them to another lease, renew
// that, read what is on it, and delete them.
func TestOwnEndpoints(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	var puts, deletes []clientv3.Op
	for i := range 60 {
		ip := fmt.Sprintf("10.5.1.%d", 2+i)
		key := endpointsKey + "default/" + hostA + "/" + ip
		puts = append(puts, clientv3.OpPut(key, endpoint(ip), clientv3.WithLease(r.leaseA)))
		deletes = append(deletes, clientv3.OpDelete(key))
	}
	for what, try := range map[string]func() error{
		"written":           func() error { _, err := r.a.Txn(ctx).Then(puts...).Commit(); return err },
		"written again":     func() error { _, err := r.a.Txn(ctx).Then(puts...).Commit(); return err },
		"the lease renewed": func() error { _, err := r.a.KeepAliveOnce(ctx, r.leaseA); return err },
		"read by others":    func() error { _, err := r.b.Get(ctx, endpointsKey, clientv3.WithPrefix()); return err },
		"policies read":     func() error { _, err := r.b.Get(ctx, testPrefix+"/overlayd/policy", clientv3.WithPrefix()); return err },
		"what is on the lease": func() error {
			got, err := r.a.TimeToLive(ctx, r.leaseA, clientv3.WithAttachedKeys())
			if err == nil && len(got.Keys) == 0 {
				err = fmt.Errorf("no keys")
			}
			return err
		},
	} {
		eventually(t, what, try)
	}
	// A reserved subnet is on no lease: what holds its endpoints is a lease for them alone.
	granted, err := r.a.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	for i := range puts {
		ip := fmt.Sprintf("10.5.1.%d", 2+i)
		puts[i] = clientv3.OpPut(endpointsKey+"default/"+hostA+"/"+ip, endpoint(ip), clientv3.WithLease(granted.ID))
	}
	eventually(t, "moved", func() error { _, err := r.a.Txn(ctx).Then(puts...).Commit(); return err })
	eventually(t, "deleted", func() error { _, err := r.a.Txn(ctx).Then(deletes...).Commit(); return err })
	if got, err := r.operator.Get(ctx, endpointsKey, clientv3.WithPrefix()); err != nil || len(got.Kvs) > 0 {
		t.Errorf("left are %v, %v", got, err)
	}
}
