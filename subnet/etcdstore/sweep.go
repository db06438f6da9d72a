package etcdstore

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// stray takes note of a lease of the host's own other than the one that it holds. It has such leases after it moved to
// another subnet, or after a restore of etcd brought back an older one.
func (m *Member) stray(key string, r *subnet.Record) {
	if key != m.own.key && r.HostID == m.cfg.HostID && r.LeaseID != 0 {
		m.strays[key] = r.ModRevision
	}
}

// sweep deletes stray leases while the host holds a lease, so that nobody waits until they expire. It leaves alone a
// reservation, and the lease that the host had before it started: containers may live there, until the host is told to
// leave it. Nobody renews that one, so it ends with its TTL.
func (m *Member) sweep(ctx context.Context, client *clientv3.Client) error {
	if m.own.state != Held || m.own.value == nil {
		return nil
	}
	for key, modRevision := range m.strays {
		delete(m.strays, key) // if it changes, the watch tells
		if key == m.own.key || key == keyOf(m.cfg.Previous) && key != m.gaveUp {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		done, err := client.Txn(ctx).
			If(unchanged(m.store.leasePrefix()+key, modRevision), unchanged(m.store.leasePrefix()+m.own.key, m.own.value.ModRevision)).
			Then(clientv3.OpDelete(m.store.leasePrefix() + key)).Commit()
		cancel()
		if err != nil {
			return m.refused(err)
		}
		if done.Succeeded {
			m.log.Info("gave back a lease of the host's own beside the one that it holds", "subnet", key)
		}
	}
	return nil
}
