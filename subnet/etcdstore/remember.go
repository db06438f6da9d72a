package etcdstore

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// remember has the view begin with what the host remembers: the config, in force as long as etcd has none, and the peers.
// Those that etcd turns out not to hold are given up as others that vanish together are.
func (v *view) remember(last leasecache.View) {
	network, err := subnet.ParseNetwork(last.Config)
	if err != nil {
		return // without a network the peers mean nothing
	}
	v.config = config{raw: last.Config, network: &network}
	for _, r := range last.Peers {
		if r.HostID != v.wish.HostID {
			v.peers.remember(r.Key(), r)
		}
	}
}

// recall brings the host up as it last was, if etcd has kept silent for long. The lease counts as it does in the cache,
// and only on the machine that held it.
func (m *Member) recall(now time.Time) {
	d := decision{state: Waiting, reason: errText(m.failure)}
	if d.reason == "" {
		d.reason = "waiting for etcd"
	}
	last := m.cfg.Last
	m.memory = m.memory || m.due.due(dueRemember, now)
	switch {
	case !m.memory:
	case last.Own == nil:
		d.reason = last.Reason + ", and " + d.reason
	case len(m.claimer.wish.Endpoints) == 0:
		d.reason = "waiting for the host's address on the underlay"
	case !m.claimer.proves(last.Own):
		d.reason = fmt.Sprintf("subnet %s was held by another machine, of which this one may be a copy", last.Own.Key())
	case !last.Expires.IsZero() && now.After(last.Expires):
		d.reason = fmt.Sprintf("the remembered lease of %s has ended, and etcd does not answer", last.Own.Key())
	default:
		d = decision{state: Held}
		m.claimer.last = *last.Own
		if m.state != Held {
			m.log.Warn("etcd does not answer: coming up with the leases as they were last seen", "peers", len(m.view.peers.known))
		}
		if !last.Expires.IsZero() {
			m.due[dueRemember] = last.Expires.Add(time.Millisecond)
		}
	}
	m.enter(d)
}

// publish lets the host Take what Run knows, and has the cache remember it.
func (m *Member) publish() {
	var news map[string]*subnet.Record
	complete := m.view.set != nil || m.memory && m.view.config.network != nil
	if complete { // until then the host makes do with what it has
		news = m.view.peers.take()
	}
	next := Update{
		Own:       Own{HostID: m.claimer.wish.HostID, State: m.state, Record: m.claimer.last, Reason: m.reason, Leaves: m.leaves},
		Connected: m.conn != nil, Err: m.failure, Complete: complete, Remembered: m.memory, Revision: m.view.revision,
	}
	m.mu.Lock()
	before := m.out
	before.Peers = nil
	other := m.other
	m.mu.Unlock()
	if m.conn != nil {
		next.Err = also(m.view.config.err, other)
	}
	if complete {
		next.Network, next.Config = m.view.config.network, m.view.config.raw
		if kv := m.view.config.kv; kv != nil {
			next.Created = kv.CreateRevision
		}
	}
	if m.state == Held && m.claimer.last.LeaseID != 0 {
		next.Own.Expires = m.session.now().expires
		if m.memory {
			next.Own.Expires = m.cfg.Last.Expires
		}
	}
	m.note(news, before, next)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(news) == 0 && same(next, before) {
		m.out.Revision = next.Revision
		return
	}
	if next.Peers = m.out.Peers; next.Peers == nil {
		next.Peers = news
	} else {
		maps.Copy(next.Peers, news)
	}
	m.out = next
	up := 0.0
	if next.Connected {
		up = 1
	}
	m.metrics.up.Set(up)
	signal(m.changed)
}

// note has the cache remember what changed. That the lease was lost is on disk before the host hears of it.
func (m *Member) note(news map[string]*subnet.Record, before, next Update) {
	if m.cfg.Cache == nil || m.view.set == nil {
		return
	}
	if len(news) > 0 {
		m.cfg.Cache.Peers(news)
	}
	m.cfg.Cache.Config(m.follows, m.mirror.client.known())
	m.cfg.Cache.Etcd(m.mirror.client.learnt())
	own := next.Own
	switch {
	case own.State == Held && (before.Own.State != Held || !own.Record.Equal(before.Own.Record) || !own.Expires.Equal(before.Own.Expires) || before.Remembered):
		m.cfg.Cache.Held(own.Record, own.Expires, m.claimer.nic)
	case own.State != Held && (before.Own.State == Held || own.State != before.Own.State):
		if err := m.cfg.Cache.Lost(own.Reason); err != nil {
			m.log.Warn("cannot remember that the lease is lost", "err", err)
		}
	}
}

// same reports whether two updates say the same but for Peers. A new revision alone is no news.
func same(a, b Update) bool {
	return a.Network == b.Network && bytes.Equal(a.Config, b.Config) && a.Connected == b.Connected &&
		errText(a.Err) == errText(b.Err) && a.Complete == b.Complete && a.Remembered == b.Remembered &&
		a.Own.State == b.Own.State && a.Own.Reason == b.Own.Reason && slices.Equal(a.Own.Leaves, b.Own.Leaves) &&
		a.Own.Expires.Equal(b.Own.Expires) && a.Own.Record.Equal(b.Own.Record)
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
