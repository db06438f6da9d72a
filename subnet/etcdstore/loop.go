package etcdstore

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net/netip"
	"time"
)

func (m *Member) loop(ctx context.Context) error {
	defer m.writer.wait()
	m.due[dueRemember] = time.Now().Add(rememberAfter)
	timer := time.NewTimer(rememberAfter)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case news := <-m.mirror.told:
			m.hear(news)
		case r := <-m.writer.done:
			m.wrote(r)
		case <-m.session.changed:
		case <-m.wake:
		case <-timer.C:
		}
		now := time.Now()
		m.reconcile(ctx, now)
		m.publish()
		timer.Reset(m.due.next(now)) // what has become due since then is still to be done
	}
}

// hear takes in what the mirror tells.
func (m *Member) hear(news any) {
	now := time.Now()
	switch n := news.(type) {
	case linked:
		m.conn, m.failure = n.conn, nil
		m.session.use(n.conn)
		signal(m.mirror.client.look)
		if m.away {
			m.away = false
			m.view.peers.extend(now) // they too could not reach etcd
			m.log.Info("etcd answers again", "endpoint", n.Endpoints()[0])
		}
	case cut:
		m.failure = n.err
		m.metrics.failed(kindEtcd)
		if m.conn == nil && !m.away { // a cut is mended in no time, as a rule
			m.away = true
			m.log.Warn("etcd does not answer: going on with what is known", "err", n.err)
		}
		m.conn = nil
		m.session.use(nil)
	default:
		m.view.take(news, &m.claimer, now)
		if _, ok := news.(listed); ok { // all that was written is in the list, or in another history
			m.writer.seen, m.claimer.wrote, m.memory = 0, 0, false
		}
	}
}

// reconcile does what is to be done now.
func (m *Member) reconcile(ctx context.Context, now time.Time) {
	vacant := m.hearWishes(now)
	if m.view.set == nil {
		m.recall(now)
		return
	}
	m.view.expire(now)
	if next := m.view.peers.next(); !next.IsZero() {
		m.due[duePeers] = next
	}
	switch {
	case m.view.config.network == nil:
		m.enter(decision{state: Waiting, reason: errText(m.view.config.err)})
		return
	case len(m.claimer.wish.Endpoints) == 0:
		m.enter(decision{state: Waiting, reason: "waiting for the host's address on the underlay"})
		return
	}
	d := m.claimer.decide(m.view.facts(m.session.now(), vacant))
	m.view.settle(m.claimer.key)
	m.leaves = d.leaves
	if d.write == nil {
		m.writer.refusal = "" // there is nothing to refuse
	}
	if d.reason == "" {
		d.reason = cmp.Or(m.writer.refusal, m.view.problem())
	}
	m.enter(d)
	m.session.follow(d)
	if d.write == nil || m.conn == nil || m.view.revision < m.writer.seen || !m.due.due(dueWrite, now) || d.write.calm && !m.due.due(dueChange, now) {
		return
	}
	if m.writer.store.name != "" && m.view.config.kv == nil && d.write.value != nil {
		return // it was deleted, and what is written into it now would stand there until it ends
	}
	if wait := m.writer.start(ctx, m.conn, d.write, m.view.config); wait > 0 {
		m.due[dueWrite] = now.Add(wait)
	}
}

// hearWishes takes in what the host wants now, and returns which subnets are vacant.
func (m *Member) hearWishes(now time.Time) (vacant []netip.Prefix) {
	m.mu.Lock()
	w := m.wishes
	m.wishes.vacant = nil
	m.mu.Unlock()
	if w.wish == nil {
		return nil
	}
	m.claimer.nic, m.follows = w.wish.NIC, w.wish.Config
	before, next := m.claimer.wish, w.wish.Lease
	if before.Equal(next) {
		return w.vacant
	}
	m.claimer.wish = next
	m.due[dueChange] = now.Add(rand.N(spread * time.Duration(1+len(m.view.peers.known))))
	if next.HostID != before.HostID {
		m.claimer.past = past{}
	}
	if next.HostID != before.HostID && m.cfg.Cache != nil {
		if err := m.cfg.Cache.Forget(next.HostID); err != nil {
			m.log.Warn("cannot forget the identity that was another's", "err", err)
		}
	}
	if next.HostID != before.HostID || !before.SameAddresses(next) {
		m.view.identify(next)
		if len(before.Endpoints) > 0 {
			m.mirror.reconnect()
		}
	}
	return w.vacant
}

// wrote takes in what became of a write.
func (m *Member) wrote(r result) {
	if wait := m.writer.end(r); wait > 0 {
		m.due[dueWrite] = time.Now().Add(wait)
	}
	switch {
	case r.lost:
		m.metrics.failed(kindRace)
	case r.unknown:
		m.session.lost(r.write.leaseID)
	case r.err != nil:
		m.metrics.failed(kindEtcd)
	default:
		m.claimer.done(r.write, r.revision)
		if r.write.value == nil {
			m.log.Info("gave back a lease of the host's own", "subnet", r.write.key)
		}
	}
}

// enter changes the state of the own lease and says so where that is news.
func (m *Member) enter(d decision) {
	if d.state == m.state && d.reason == m.reason {
		return
	}
	before := m.state
	m.state, m.reason = d.state, d.reason
	switch key := m.claimer.key; {
	case d.state == Taken:
		m.metrics.failed(kindTaken)
		m.log.Error("the host's subnet is taken", "subnet", key, "reason", d.reason)
	case d.state == Claiming && key == "" && d.reason != "":
		m.metrics.failed(kindFull)
		m.log.Warn("there is no subnet for the host", "reason", d.reason)
	case d.reason != "" && d.state != Waiting:
		m.log.Warn("the host's lease needs attention", "subnet", key, "reason", d.reason)
	case d.state == Held && before != Held:
		m.log.Info("holding a lease", "subnet", key)
	case d.state == Claiming && before == Held && m.claimer.had: // otherwise the host gave it up
		m.metrics.failed(kindLost)
		m.log.Warn("the host's lease is lost: claiming it again", "subnet", key)
	}
}
