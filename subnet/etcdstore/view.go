package etcdstore

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// list reads everything, with one request for the config and one for each page of leases. Without a network in force
// there is nothing that leases could belong to: then it waits for a config.
func (m *Member) list(ctx context.Context, client *clientv3.Client) error {
	first, cancel := context.WithTimeout(ctx, m.patience)
	got, err := client.Get(first, m.store.configKey())
	cancel()
	if err != nil {
		return describe(err, m.endpoint)
	}
	var kv *mvccpb.KeyValue
	if len(got.Kvs) > 0 {
		kv = got.Kvs[0]
	}
	m.readConfig(kv)
	if m.config.network == nil {
		m.cluster, m.revision = got.Header.ClusterId, got.Header.Revision
		return nil
	}
	set := subnet.NewSet(*m.config.network)
	var value *ownValue
	var newest newest
	revision, err := readLeases(ctx, client, m.store.leasePrefix(), got.Header.Revision, func(kvs []subnet.KeyValue) {
		set.Load(kvs)
		for _, kv := range kvs {
			newest.see(kv.Key, kv.ModRevision)
			if kv.Key == m.own.key {
				value = newOwnValue(kv)
			}
		}
	})
	if err != nil {
		return err
	}
	m.cluster, m.revision, m.set, m.own.value, m.stuck = got.Header.ClusterId, revision, set, value, false
	m.newest = newest
	m.reviewAll(time.Now())
	return nil
}

// reviewAll makes the peers those of a set that was read anew.
func (m *Member) reviewAll(now time.Time) {
	m.twins, m.strays = make(map[string]string), make(map[string]int64)
	m.peers.expect(m.set.Len())
	added := false
	for key, r := range m.set.All() {
		added = m.meet(key, r) || added
	}
	for key := range m.skips.known {
		m.skips.note(key, m.set.Rejection(key), now)
	}
	for key, reason := range m.set.Rejected() {
		m.skips.note(key, reason, now)
	}
	var absent []string
	for key := range m.peers.known {
		if _, ok := m.set.Get(key); !ok {
			absent = append(absent, key)
		}
	}
	m.hold(m.peers.absent(absent, now))
	m.reviewed(added, now)
}

// review makes the peers follow changed keys.
func (m *Member) review(changed map[string]bool, now time.Time) {
	if m.set == nil || len(changed) == 0 {
		return
	}
	added := false
	var left, spoilt []string
	for key := range changed {
		delete(m.strays, key)
		reason := m.set.Rejection(key)
		m.skips.note(key, reason, now)
		if r, ok := m.set.Get(key); ok {
			added = m.meet(key, r) || added
			continue
		}
		if m.twins[key] != "" {
			delete(m.twins, key)
			m.retry = time.Time{} // perhaps it stood in the own lease's way
		}
		if _, known := m.peers.known[key]; known && reason != nil {
			spoilt = append(spoilt, key) // junk over a peer's lease: the peer will put that right
		} else {
			left = append(left, key)
		}
	}
	// With the own key gone too, nobody left: somebody or something cleared etcd.
	cleared := len(left) > 1 && slices.Contains(left, m.own.key)
	m.hold(m.peers.leave(left, cleared, now) + m.peers.absent(spoilt, now))
	m.reviewed(added || len(spoilt) > 0, now)
}

// reviewed ends a review; crowded says that a peer came, or a key was spoilt, that may stand in a held peer's way.
func (m *Member) reviewed(crowded bool, now time.Time) {
	if crowded {
		m.displace()
	}
	m.skips.flush(now)
	m.metrics.leases.Set(float64(m.set.Len()))
}

// meet takes in a lease that counts: a peer's, or the host's own. It returns whether that is a new peer.
func (m *Member) meet(key string, r *subnet.Record) (added bool) {
	wish := m.wishLease()
	delete(m.twins, key)
	delete(m.strays, key)
	if key == m.own.key || ownerOf(r.Lease, wish) == ours {
		m.stray(key, r)
		m.peers.drop(key)
		return false
	}
	if sharesAddress(r.Lease, wish) {
		m.twins[key] = "subnet " + key + " is announced with this host's address by " + nameOf(r.Lease)
		m.metrics.failed(kindTwin)
	}
	return m.peers.put(key, r)
}

// hold says that peers are held.
func (m *Member) hold(n int) {
	if n == 0 {
		return
	}
	m.metrics.errors.WithLabelValues(kindVanish).Add(float64(n))
	m.log.Warn("peers vanished from etcd: keeping them for a while", "count", n, "for", m.cfg.Grace)
}

// displace drops held peers whose subnets belong to somebody else now.
func (m *Member) displace() {
	for _, key := range m.peers.kept() {
		r := m.peers.known[key]
		if holder, ok := m.set.Overlaps(r.Subnets()); ok && holder != key {
			m.peers.drop(key)
		}
	}
}

// wishLease is what the host wants its lease to say; before it says so, that is its HostID.
func (m *Member) wishLease() subnet.Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wishes.lease == nil {
		return subnet.Lease{HostID: m.cfg.HostID, Host: m.cfg.Host}
	}
	return *m.wishes.lease
}
