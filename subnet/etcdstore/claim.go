package etcdstore

import (
	"cmp"
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// tend does for the own lease what is to be done now, and lets go of peers whose time of grace is over.
func (m *Member) tend(ctx context.Context, client *clientv3.Client) error {
	now := time.Now()
	left, given := m.peers.expire(now)
	if left+given > 0 {
		m.stuck = false // their subnets are free
	}
	if given > 0 {
		m.log.Warn("gave up peers that vanished", "count", given)
	}
	m.skips.flush(now)
	if !m.ready() {
		return nil
	}
	if m.moved {
		m.moved = false
		return errMoved
	}
	if err := m.answer(ctx, client); err != nil {
		return err
	}
	for {
		w := m.decide() // also while it is too early to write: what is told of the lease must be true
		if time.Now().Before(m.retry) {
			break
		}
		m.retry = time.Time{}
		if w == nil {
			break
		}
		if may, err := m.mayWrite(ctx, client); err != nil {
			return err
		} else if may {
			err = m.write(ctx, client, w)
			if err != nil {
				return err
			}
		}
	}
	if err := m.sweep(ctx, client); err != nil {
		return err
	}
	return m.keepAlive(ctx, client)
}

// ready takes in the host's wishes and says whether there is all that a lease needs.
func (m *Member) ready() bool {
	m.mu.Lock()
	w := m.wishes
	m.wishes.abandon = false
	m.mu.Unlock()
	switch {
	case m.set == nil:
		m.own.state, m.own.reason = Waiting, errText(m.config.err)
		return false
	case w.lease == nil:
		m.own.state, m.own.reason = Waiting, "waiting for the host's address on the underlay"
		return false
	}
	if !sameAddresses(m.announced, *w.lease) {
		m.moved = len(m.announced.Endpoints) > 0
		m.readdress(*w.lease)
	}
	if w.abandon && m.own.key != "" && (m.own.state == Taken || !m.config.network.Fits(m.own.subnets)) {
		m.log.Info("gave up the subnet", "subnet", m.own.key)
		m.gaveUp = m.own.key
		m.leaveKey()
	}
	return true
}

// readdress looks again at the leases that are, or are not, the host's own because of its address.
func (m *Member) readdress(wish subnet.Lease) {
	for key, r := range m.set.All() {
		if sharesAddress(r.Lease, m.announced) || sharesAddress(r.Lease, wish) {
			m.meet(key, r)
		}
	}
	m.announced = wish
}

// leaveKey lets the host choose anew. If the old key is its own, that is left to end with its etcd lease.
func (m *Member) leaveKey() {
	old := m.own
	m.own = own{state: Claiming, lastHeld: old.lastHeld, deadID: old.leaseID}
	// One etcd lease never holds two keys of which one was the host's for a while: renewing it would keep both.
	if there, _ := old.owner(m.wishLease()); there != ours && !old.had {
		m.own.deadID, m.own.leaseID, m.own.granted, m.own.expires = old.deadID, old.leaseID, old.granted, old.expires
	}
	m.stuck = false
	if r, ok := m.set.Get(old.key); ok {
		m.meet(old.key, r)
	}
}

// decide says what to write, if anything, and sets the state of the own lease.
func (m *Member) decide() *write {
	wish := m.wishLease()
	if m.own.key != "" && !m.own.had {
		if there, _ := m.own.owner(wish); there == theirs || m.rejection(wish) != nil {
			m.leaveKey() // a race that was lost
		}
	}
	if m.own.key == "" && !m.choose(wish) {
		return nil
	}
	v := m.own.judge(wish, *m.config.network, m.rejection(wish))
	if v.write != nil && v.reason == "" {
		v.reason = cmp.Or(m.challenge.obstacle(), m.refusal)
		if m.challenge.answer != "" && m.challenge.rival.clone && m.own.had {
			v.state = Taken
		}
	}
	// What this host put is its own, also if the host wants to say something else by now.
	if v.state == Held && v.write == nil || v.state != Taken && m.own.value != nil && m.own.value.ModRevision == m.own.wrote {
		_, l := m.own.owner(wish)
		m.own.had = true
		m.own.leaseID = m.own.value.LeaseID
		m.own.lastHeld = subnet.Record{Lease: l, CreateRevision: m.own.value.CreateRevision,
			ModRevision: m.own.value.ModRevision, LeaseID: m.own.value.LeaseID}
	}
	m.enter(v.state, v.reason)
	return v.write
}

// rejection says why the own lease does not count, or would not if it were put.
func (m *Member) rejection(wish subnet.Lease) error {
	if m.own.value != nil {
		return m.set.Rejection(m.own.key)
	}
	for key, r := range m.set.Overlapping(m.own.subnets) {
		if ownerOf(r.Lease, wish) != ours {
			return fmt.Errorf("subnet %s overlaps %s, which belongs to %s now", m.own.key, key, nameOf(r.Lease))
		}
	}
	return nil
}

// choose picks the subnet to claim and says whether there was one.
func (m *Member) choose(wish subnet.Lease) bool {
	if m.stuck {
		return false
	}
	c := choice{wish: wish, network: *m.config.network, set: m.set, previous: m.cfg.Previous, taken: m.peers.keep(), gaveUp: m.gaveUp}
	if len(m.own.lastHeld.Endpoints) > 0 {
		c.previous = m.own.lastHeld.Subnets()
	}
	subnets, err := c.choose()
	if err != nil {
		m.stuck = true
		m.metrics.failed(kindFull)
		m.enter(Claiming, err.Error())
		return false
	}
	m.own.key, m.own.subnets, m.own.value = keyOf(subnets), subnets, nil
	if r, ok := m.set.Get(m.own.key); ok {
		value, err := r.Value()
		if err != nil {
			value = nil // not as we would write it: write over it
		}
		m.own.value = newOwnValue(subnet.KeyValue{
			Key: m.own.key, Value: value, CreateRevision: r.CreateRevision, ModRevision: r.ModRevision, LeaseID: r.LeaseID,
		})
	}
	m.peers.drop(m.own.key)
	return true
}

// enter changes the state of the own lease and says so where that is news.
func (m *Member) enter(s State, reason string) {
	if s == m.own.state && reason == m.own.reason {
		return
	}
	before := m.own.state
	m.own.state, m.own.reason = s, reason
	switch {
	case s == Taken:
		m.metrics.failed(kindTaken)
		m.log.Error("the host's subnet is taken", "subnet", m.own.key, "reason", reason)
	case reason != "":
		m.log.Warn("the host's lease needs attention", "subnet", m.own.key, "reason", reason)
	case s == Held && before != Held:
		m.log.Info("holding a lease", "subnet", m.own.key)
	case s == Claiming && before == Held:
		m.metrics.failed(kindLost)
		m.log.Warn("the host's lease is lost: claiming it again", "subnet", m.own.key)
	}
}
