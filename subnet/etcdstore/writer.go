package etcdstore

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// raceDelay is the shortest wait after a lost race; hosts that lost together should not meet again.
	raceDelay = 10 * time.Millisecond
	// writeDelay follows a few writes in a row over values that others put at the own key: with two parties that
	// each put theirs right, etcd must not pay for it.
	writeDelay = time.Second
)

// writer brings about one change of own keys at a time, beside the loop: no event waits for it.
type writer struct {
	store   *Store
	done    chan result // capacity 1
	limit   *rate.Limiter
	group   sync.WaitGroup
	busy    bool
	seen    int64   // nothing is to be written before this revision is known: what was written, or who was faster
	races   backoff // lost ones in a row
	denials backoff // refusals in a row
	refusal string  // why etcd does not take what the host wants to write; empty: it does
}

// result is what became of a write.
type result struct {
	write    *write
	revision int64 // of the change; 0: there was none
	newer    int64 // of what is at the key, if somebody was faster
	lost     bool  // somebody was
	unknown  bool  // etcd does not know the lease that is to hold the key
	err      error
}

// start begins a write, or returns how long to wait with it.
func (w *writer) start(ctx context.Context, c *conn, change *write, config config) time.Duration {
	if w.busy {
		return 0
	}
	if (change.modRevision != 0 || change.from != nil) && change.value != nil && !w.limit.Allow() {
		return writeDelay
	}
	w.busy = true
	w.group.Go(func() { w.done <- w.commit(ctx, c, change, config.modRevision()) })
	return 0
}

func (w *writer) wait() { w.group.Wait() }

// commit puts or deletes the own key in one transaction: it must be as it is known, and the network config too.
func (w *writer) commit(ctx context.Context, c *conn, change *write, config int64) result {
	key := w.store.leasePrefix() + change.key
	same := []clientv3.Cmp{unchanged(key, change.modRevision), unchanged(w.store.configKey(), config)}
	ops := []clientv3.Op{clientv3.OpDelete(key)}
	if change.value != nil {
		ops[0] = clientv3.OpPut(key, string(change.value), clientv3.WithLease(clientv3.LeaseID(change.leaseID)))
	}
	if change.from != nil {
		from := w.store.leasePrefix() + change.from.Key()
		same = append(same, unchanged(from, change.from.ModRevision))
		ops = append(ops, clientv3.OpDelete(from))
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	done, err := c.Txn(ctx).If(same...).Then(ops...).Else(clientv3.OpGet(key, clientv3.WithKeysOnly())).Commit()
	r := result{write: change, err: err}
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		r.unknown = true
	case err != nil && !refuses(err):
		c.fail(describe(err, c.Endpoints()...))
	case err != nil:
	case done.Succeeded:
		r.revision = done.Header.Revision
	default:
		r.lost = true
		if kvs := done.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			r.newer = kvs[0].ModRevision
		}
	}
	return r
}

// end takes in that a write is over, and returns how long to wait before the next one.
func (w *writer) end(r result) time.Duration {
	w.busy = false
	switch {
	case r.lost, r.unknown:
		w.seen = max(w.seen, r.newer)
		return w.races.next(raceDelay, 8*raceDelay)
	case r.err == nil:
		w.seen, w.refusal, w.races, w.denials = r.revision, "", 0, 0
		return 0
	case refuses(r.err):
		w.refusal = "etcd refuses to write the lease" + complaint(r.err)
		return w.denials.next(maxBackoff, time.Minute)
	}
	return raceDelay // until it is known that the connection is of no use
}

// refuses says whether an etcd that answers does not let the host write: it lacks space, or the permission. The watch is
// as good as before.
func refuses(err error) bool {
	e, ok := errors.AsType[rpctypes.EtcdError](err)
	return denied(err) || ok && e.Code() == codes.ResourceExhausted
}

// denied says whether etcd, or the gate before an embedded one, does not permit it.
func denied(err error) bool {
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code() == codes.PermissionDenied
	}
	return status.Code(err) == codes.PermissionDenied
}
