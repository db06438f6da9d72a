package etcdstore

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
)

const (
	// raceDelay is the longest wait after a lost race; hosts that lost together should not meet again.
	raceDelay = 20 * time.Millisecond
	// writeDelay follows a few writes in a row over values that others put at the own key: with two parties that
	// each put theirs right, etcd must not pay for it.
	writeDelay = time.Second
	// renewAtMost is the longest time between renewals. A third of the TTL would be enough for etcd, but hosts with
	// a day's lease should still have most of it when etcd breaks.
	renewAtMost = time.Hour
)

// write puts the own key in one transaction: it must be as it is known, and the network config too.
func (m *Member) write(ctx context.Context, client *clientv3.Client, w *write) error {
	if w.modRevision != 0 && !m.writes.Allow() {
		m.retry = time.Now().Add(writeDelay)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.patience)
	defer cancel()
	if w.grant {
		if err := m.grant(ctx, client); err != nil {
			return m.refused(err)
		}
		w.leaseID = m.own.leaseID
	}
	key := m.store.leasePrefix() + m.own.key
	var opts []clientv3.OpOption
	if w.leaseID != 0 {
		opts = append(opts, clientv3.WithLease(clientv3.LeaseID(w.leaseID)))
	}
	same := []clientv3.Cmp{unchanged(key, w.modRevision), unchanged(m.store.configKey(), m.config.modRevision)}
	puts := []clientv3.Op{clientv3.OpPut(key, string(w.value), opts...)}
	if w.modRevision == 0 {
		// With no config at all everybody goes on with the one that there was.
		current := m.config.err == nil || m.config.modRevision == 0
		g := m.store.guard(claim{m.own.subnets, *m.config.network, current, m.revision})
		same = append(same, g.known...)
		for _, key := range g.put {
			puts = append(puts, clientv3.OpPut(key, m.cfg.HostID, opts...))
		}
	}
	done, err := client.Txn(ctx).If(same...).Then(puts...).
		// What the host has not heard yet, so that its next choice is a better one.
		Else(clientv3.OpGet(key), clientv3.OpGet(m.store.leasePrefix(), clientv3.WithPrefix(), clientv3.WithMinModRev(m.revision+1))).
		Commit()
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		m.own.loseLease()
		m.retry = time.Now().Add(raceDelay)
		return nil
	case err != nil:
		return m.refused(err)
	case !done.Succeeded:
		m.lostRace(done.Responses[0].GetResponseRange().Kvs, done.Responses[1].GetResponseRange().Kvs)
		return nil
	}
	m.refusal, m.own.wrote = "", done.Header.Revision
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: w.value, ModRevision: done.Header.Revision, CreateRevision: done.Header.Revision, Lease: w.leaseID}
	if w.modRevision != 0 {
		kv.CreateRevision = m.own.value.CreateRevision
	}
	changed := make(map[string]bool)
	m.change(m.own.key, kv, false, changed)
	m.review(changed, time.Now())
	return nil
}

// grant gets an etcd lease, without a key yet.
func (m *Member) grant(ctx context.Context, client *clientv3.Client) error {
	asked := time.Now()
	got, err := client.Grant(ctx, m.ttl())
	if err != nil {
		return err
	}
	m.own.leaseID, m.own.granted = int64(got.ID), true
	m.renewed(asked, got.TTL)
	return nil
}

// refused takes note of an etcd that answers but does not let the host write: it lacks space, or the permission. The
// watch is as good as before. Other errors it returns.
func (m *Member) refused(err error) error {
	e, ok := errors.AsType[rpctypes.EtcdError](err)
	if !ok || e.Code() != codes.PermissionDenied && e.Code() != codes.ResourceExhausted {
		return describe(err, m.endpoint)
	}
	m.metrics.failed(kindEtcd)
	m.refusal = "etcd refuses to write the lease: " + e.Error()
	m.enter(m.own.state, m.refusal)
	m.retry = time.Now().Add(maxBackoff)
	return nil
}

// ttl is what the host asks for, in seconds.
func (m *Member) ttl() int64 { return max(1, int64(math.Ceil(m.cfg.TTL.Seconds()))) }

// renewed takes note that the etcd lease was good for ttl seconds from asked on.
func (m *Member) renewed(asked time.Time, ttl int64) {
	left := time.Duration(ttl) * time.Second
	m.own.expires = asked.Add(left)
	m.renew = asked.Add(min(left/3, renewAtMost))
}

// lostRace takes in what the own key and others hold after a transaction failed.
func (m *Member) lostRace(own, others []*mvccpb.KeyValue) {
	m.metrics.failed(kindRace)
	m.retry = time.Now().Add(rand.N(raceDelay))
	m.own.value = nil
	if len(own) > 0 {
		m.own.value = newOwnValue(keyValue(m.own.key, own[0]))
	}
	changed := make(map[string]bool)
	for _, kv := range others {
		// The watch will tell of the same again, and of what was in between: that does no harm.
		key := strings.TrimPrefix(string(kv.Key), m.store.leasePrefix())
		m.change(key, kv, false, changed)
	}
	m.review(changed, time.Now())
}

// keepAlive renews the etcd lease when it is time to.
func (m *Member) keepAlive(ctx context.Context, client *clientv3.Client) error {
	id := m.own.leaseID
	if m.own.state != Held || id == 0 {
		m.renew = time.Time{}
		return nil
	}
	asked := time.Now()
	if asked.Before(m.renew) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.patience)
	defer cancel()
	got, err := client.KeepAliveOnce(ctx, clientv3.LeaseID(id))
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		m.own.loseLease()
		m.own.expires = asked
	case err != nil:
		return describe(err, m.endpoint)
	case !m.own.granted && got.TTL != m.ttl():
		m.renewed(asked, got.TTL)
		m.own.loseLease() // an earlier run of ours wanted another TTL
	default:
		m.renewed(asked, got.TTL)
		return nil
	}
	m.renew = time.Now().Add(writeDelay)
	m.retry = time.Now()
	return nil
}
