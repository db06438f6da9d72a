package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
	// silence is how long etcd may say nothing before it is asked whether it is there and still the same. For more
	// peers it is longer, so that all hosts together ask about 150 times a second at most, of which each costs etcd
	// 80 µs. A peer that is gone is noticed by the kernel after probeTime and pingTimeout, 8 s, and one that takes
	// everything and answers nothing by the ping after 13 s, whatever the number of peers.
	silence        = 6 * time.Second
	maxSilence     = time.Minute
	silencePerPeer = 6 * time.Millisecond
)

// errStale says that what is known does not fit what etcd says: list again.
var errStale = errors.New("etcd cannot be followed from where it was left")

// errMoved says that the connection may be from an address that the host does not have any more.
var errMoved = errors.New("the host has another address")

// follow connects to an endpoint, picks up where it was left, and follows etcd until that fails or ctx ends.
func (m *Member) follow(ctx context.Context, endpoint string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.endpoint, m.moved = endpoint, false
	client, err := m.store.client.dial(ctx, endpoint)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := m.catchUp(ctx, client); err != nil {
		return err
	}
	// A stream that is never answered must not hold up the next attempt.
	patience := time.AfterFunc(m.patience, cancel)
	watch := client.Watch(clientv3.WithRequireLeader(ctx), m.store.prefix+"/",
		clientv3.WithPrefix(), clientv3.WithRev(m.revision+1), clientv3.WithProgressNotify())
	if !patience.Stop() {
		return describe(context.DeadlineExceeded, endpoint)
	}
	m.connected()
	return m.serve(ctx, client, watch)
}

// serve handles what etcd and the host say, until the watch fails.
func (m *Member) serve(ctx context.Context, client *clientv3.Client, watch clientv3.WatchChan) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for heard := time.Now(); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case resp, ok := <-watch:
			if !ok {
				return fmt.Errorf("etcd at %s ended the watch", m.endpoint)
			}
			if err := m.take(resp); err != nil {
				return err
			}
			heard = time.Now()
		case <-m.wake:
		case <-timer.C:
		}
		if time.Since(heard) >= m.silence() {
			if err := m.verify(ctx, client); err != nil {
				return err
			}
			heard = time.Now()
		}
		if err := m.tend(ctx, client); err != nil {
			return err
		}
		m.publish(nil)
		timer.Reset(time.Until(m.due(heard)))
	}
}

func (m *Member) silence() time.Duration {
	return min(maxSilence, max(silence, time.Duration(len(m.peers.known))*silencePerPeer))
}

// due is when something is to be done even if nothing happens.
func (m *Member) due(heard time.Time) time.Time {
	due := heard.Add(m.silence())
	for _, t := range []time.Time{m.retry, m.renew, m.peers.next()} {
		if !t.IsZero() && t.Before(due) {
			due = t
		}
	}
	return due
}

// catchUp makes what is known fit etcd: nothing if the watch can go on where it ended, else by listing anew.
func (m *Member) catchUp(ctx context.Context, client *clientv3.Client) error {
	if m.revision != 0 {
		if err := m.verify(ctx, client); !errors.Is(err, errStale) {
			return err
		}
	}
	return m.list(ctx, client)
}

// verify asks etcd for the keys that the host knows best, and returns errStale if it cannot be the etcd that was
// followed: one that was wiped, or restored from a backup. What changed after the last known revision is for the
// watch to tell.
func (m *Member) verify(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, m.patience)
	defer cancel()
	ops := []clientv3.Op{clientv3.OpGet(m.store.configKey(), clientv3.WithKeysOnly())}
	known := []int64{m.config.modRevision}
	for key, modRevision := range map[string]int64{m.newest.key: m.newest.modRevision, m.own.key: m.own.modRevision()} {
		if key != "" {
			ops = append(ops, clientv3.OpGet(m.store.leasePrefix()+key, clientv3.WithKeysOnly()))
			known = append(known, modRevision)
		}
	}
	asked := time.Now()
	got, err := client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return describe(err, m.endpoint)
	}
	if time.Since(asked) < requestTimeout {
		m.patience, m.misses = requestTimeout, 0
	}
	for i, r := range got.Responses {
		if err := sameHistory(known[i], m.revision, r.GetResponseRange().Kvs); err != nil {
			return m.stale(err)
		}
	}
	return m.check(got.Header)
}

// sameHistory compares the known revision of a key, 0 if it was absent, with what etcd holds now.
func sameHistory(known, revision int64, kvs []*mvccpb.KeyValue) error {
	switch {
	case len(kvs) == 0 && known == 0:
		return nil
	case len(kvs) == 0:
		// It may have been deleted a moment ago. To list once too often is cheaper than to be wrong.
		return fmt.Errorf("%w: a key is missing", errStale)
	case kvs[0].ModRevision != known && kvs[0].ModRevision <= revision:
		return fmt.Errorf("%w: %s has revision %d, not %d", errStale, kvs[0].Key, kvs[0].ModRevision, known)
	}
	return nil
}

// check looks at the header of any answer.
func (m *Member) check(h *etcdserverpb.ResponseHeader) error {
	switch {
	case m.cluster != 0 && h.ClusterId != m.cluster:
		return m.stale(fmt.Errorf("%w: its cluster id is %x, not %x", errStale, h.ClusterId, m.cluster))
	case h.Revision < m.revision:
		return m.stale(fmt.Errorf("%w: it is at revision %d, not yet at %d", errStale, h.Revision, m.revision))
	}
	return nil
}

// stale makes the next catchUp list.
func (m *Member) stale(err error) error {
	m.log.Info("listing the leases anew", "why", err)
	m.revision = 0
	return err
}

// take handles one answer of the watch.
func (m *Member) take(resp clientv3.WatchResponse) error {
	if err := resp.Err(); err != nil {
		if errors.Is(err, rpctypes.ErrCompacted) {
			return m.stale(fmt.Errorf("%w: it has forgotten revision %d", errStale, m.revision))
		}
		return describe(err, m.endpoint)
	}
	if err := m.check(resp.Header); err != nil {
		return err
	}
	if resp.IsProgressNotify() {
		m.revision = resp.Header.Revision
		return nil
	}
	changed := make(map[string]bool)
	for _, ev := range resp.Events {
		m.metrics.events.Inc()
		gone := ev.Type == clientv3.EventTypeDelete
		if key, ok := strings.CutPrefix(string(ev.Kv.Key), m.store.leasePrefix()); ok && m.set != nil {
			m.change(key, ev.Kv, gone, changed)
		} else if hostID, ok := m.store.challengeKey(string(ev.Kv.Key)); ok {
			m.hear(hostID, ev.Kv, gone)
		} else if string(ev.Kv.Key) == m.store.configKey() {
			if err := m.configure(ev.Kv, gone, changed); err != nil {
				return err
			}
		}
		// Not that of the header: a watch that lags behind gets the past in parts, each with the present revision.
		m.revision = max(m.revision, ev.Kv.ModRevision)
	}
	if kv := m.config.refused; kv != nil {
		if err := m.configure(kv, false, changed); err != nil {
			return err
		}
	}
	m.review(changed, time.Now())
	return nil
}

// newest is the key below subnets/ that changed last: an etcd that was restored from a backup, and went on since, may
// have all the others as they were.
type newest struct {
	key         string // empty: unknown
	modRevision int64
}

func (n *newest) see(key string, modRevision int64) {
	if modRevision >= n.modRevision {
		*n = newest{key, modRevision}
	}
}

// change takes in a new state of a key below subnets/.
func (m *Member) change(key string, kv *mvccpb.KeyValue, gone bool, changed map[string]bool) {
	if key == m.own.key && !m.own.observe(kv, gone) {
		return // older than our own write
	}
	var keys []string
	if gone {
		keys = m.set.Delete(key)
		m.stuck = false
		if key == m.newest.key {
			m.newest = newest{}
		}
	} else {
		m.newest.see(key, kv.ModRevision)
		keys = m.set.Put(keyValue(key, kv))
	}
	changed[key] = true
	for _, k := range keys {
		changed[k] = true
	}
}

// connected says that etcd is followed.
func (m *Member) connected() {
	m.up = true
	if m.away {
		m.away = false
		m.peers.extend(time.Now()) // they too could not reach etcd
		m.log.Info("etcd answers again", "endpoint", m.endpoint)
	}
}

// disconnected says why etcd is not followed any more, and returns how long to wait at most before the next attempt,
// given how long that was before.
func (m *Member) disconnected(err error, wait time.Duration) time.Duration {
	if errors.Is(err, errStale) || errors.Is(err, errRetired) || errors.Is(err, errMoved) {
		return minBackoff
	}
	m.metrics.failed(kindEtcd)
	if unanswered(err) { // by all of them in turn: be they as slow as they like
		m.misses++
		m.patience = min(maxPatience, requestTimeout<<min(10, m.misses/len(m.store.client.current())))
	}
	if m.up { // a cut is mended in no time, as a rule
		wait = 0
		m.up = false
	} else if !m.away {
		m.away = true
		m.log.Warn("etcd does not answer: going on with what is known", "err", err)
	}
	if m.ready() {
		m.decide() // what was learned before it failed
	}
	if m.set == nil {
		m.own.reason = errText(err)
	}
	m.publish(err)
	return min(maxBackoff, max(minBackoff, 2*wait))
}
