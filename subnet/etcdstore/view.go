package etcdstore

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// The ranges that a Member follows, and nothing else below the prefix.
const (
	inConfig = iota
	inLeases
)

// mirror is of the ranges that a view is made from.
func (s *Store) mirror() *mirror {
	return newMirror(s.client, s.log, keyRange{key: s.configKey()}, keyRange{s.leasePrefix(), true})
}

// view is what a host knows of the network: the config in force, all leases, and which of them are peers' and which its
// own. It takes in what the mirror tells, and does no I/O.
type view struct {
	store   *Store
	log     *slog.Logger
	metrics *metrics

	config       config
	set          *subnet.Set // nil: etcd was not listed yet
	revision     int64       // up to which the leases are known
	next         *subnet.Set // a list that is being read
	nextRevision int64
	peers        *peers
	skips        *skips
	wish         subnet.Lease              // what the host says of itself
	own          string                    // the key that the host has or claims: whoever has that now is no peer
	mine         map[string]*subnet.Record // the host's own leases that count
	conflicts    map[string]string         // leases of other hosts with our address: key → what to tell
}

func (s *Store) view(cfg JoinConfig, m *metrics) *view {
	v := &view{
		store: s, log: s.log, metrics: m, wish: subnet.Lease{HostID: cfg.HostID},
		peers: newPeers(cfg.Grace), skips: &skips{s.log, m, map[string]string{}},
	}
	v.remember(cfg.Last)
	return v
}

// take takes in a report of the mirror about keys.
func (v *view) take(report any, own *claimer, now time.Time) {
	switch r := report.(type) {
	case listing:
		v.next, v.nextRevision = nil, r.revision
	case page:
		if r.in == inConfig {
			v.readConfig(first(r.kvs), own)
			break
		}
		if v.next == nil {
			v.next = subnet.NewSet(v.config.inForce())
		}
		v.next.Load(keyValues(v.store.leasePrefix(), r.kvs))
	case listed:
		v.set, v.revision, v.next = v.next, v.nextRevision, nil
		if v.config.blocker != "" { // by the leases that were known before
			v.configure(v.config.kv, own, make(map[string]bool))
		}
		v.reviewAll(now)
	case events:
		v.change(r, own, now)
	}
}

func first(kvs []*mvccpb.KeyValue) *mvccpb.KeyValue {
	if len(kvs) == 0 {
		return nil
	}
	return kvs[0]
}

// change takes in what has changed.
func (v *view) change(e events, own *claimer, now time.Time) {
	changed := make(map[string]bool)
	for _, ev := range e.all {
		v.metrics.events.Inc()
		gone := ev.Type == clientv3.EventTypeDelete
		switch kv := keyValue(v.store.leasePrefix(), ev.Kv); {
		case e.in == inConfig && gone:
			v.configure(nil, own, changed)
		case e.in == inConfig:
			v.configure(ev.Kv, own, changed)
		case gone:
			touch(changed, kv.Key, v.set.Delete(kv.Key))
		default:
			touch(changed, kv.Key, v.set.Put(kv))
		}
	}
	if e.in == inLeases {
		v.revision = e.revision
	}
	if v.config.blocker != "" && changed[v.config.blocker] {
		v.configure(v.config.kv, own, changed)
	}
	v.review(changed, now)
}

// touch adds a key that changed, and those that count otherwise for that.
func touch(changed map[string]bool, key string, others []string) {
	changed[key] = true
	for _, k := range others {
		changed[k] = true
	}
}

// identify takes in what the host says of itself, and looks again at the leases that are, or are not, its own for that.
func (v *view) identify(wish subnet.Lease) {
	before := v.wish
	v.wish = wish
	if v.set == nil {
		return
	}
	for key, r := range v.set.All() {
		if r.HostID == before.HostID || r.HostID == wish.HostID || sharesAddress(r.Lease, before) || sharesAddress(r.Lease, wish) {
			v.meet(key, r)
		}
	}
}

// settle takes in which key the host has or claims.
func (v *view) settle(key string) {
	before := v.own
	if key == before {
		return
	}
	v.own = key
	for _, k := range []string{before, key} {
		if r, ok := v.set.Get(k); ok {
			v.meet(k, r)
		}
	}
	v.peers.drop(key)
}

// reviewAll makes the peers those of a set that was read anew.
func (v *view) reviewAll(now time.Time) {
	v.conflicts, v.mine = make(map[string]string), make(map[string]*subnet.Record)
	v.peers.expect(v.set.Len())
	added := false
	for key, r := range v.set.All() {
		added = v.meet(key, r) || added
	}
	if v.config.network != nil { // without a network all of them are no leases of it
		for key := range v.skips.known {
			v.skips.note(key, v.set.Rejection(key))
		}
		for key, reason := range v.set.Rejected() {
			v.skips.note(key, reason)
		}
	}
	var absent []string
	for key := range v.peers.known {
		if _, ok := v.set.Get(key); !ok {
			absent = append(absent, key)
		}
	}
	v.hold(v.peers.absent(absent, now))
	v.reviewed(added)
}

// review makes the peers follow changed keys.
func (v *view) review(changed map[string]bool, now time.Time) {
	if len(changed) == 0 {
		return
	}
	added := false
	var left, spoilt []string
	for key := range changed {
		reason := v.set.Rejection(key)
		if v.config.network != nil {
			v.skips.note(key, reason)
		}
		if r, ok := v.set.Get(key); ok {
			added = v.meet(key, r) || added
			continue
		}
		delete(v.mine, key)
		delete(v.conflicts, key)
		if _, known := v.peers.known[key]; known && reason != nil {
			spoilt = append(spoilt, key) // junk over a peer's lease: the peer will put that right
		} else {
			left = append(left, key)
		}
	}
	// With the own key gone too, nobody left: somebody or something cleared etcd.
	cleared := len(left) > 1 && slices.Contains(left, v.own)
	v.hold(v.peers.leave(left, cleared, now) + v.peers.absent(spoilt, now))
	v.reviewed(added || len(spoilt) > 0)
}

// reviewed ends a review; crowded says that a peer came, or a key was spoilt, that may stand in a held peer's way.
func (v *view) reviewed(crowded bool) {
	if crowded {
		v.displace()
	}
	v.metrics.leases.Set(float64(v.set.Len()))
}

// meet takes in a lease that counts: a peer's, or the host's own. It returns whether that is a new peer.
func (v *view) meet(key string, r *subnet.Record) (added bool) {
	delete(v.conflicts, key)
	delete(v.mine, key)
	ours := ownerOf(r.Lease, v.wish) == ours
	if ours {
		v.mine[key] = r
	}
	if ours || key == v.own {
		v.peers.drop(key)
		return false
	}
	if sharesAddress(r.Lease, v.wish) && !(behindNAT(r.Lease) && behindNAT(v.wish)) {
		v.conflicts[key] = fmt.Sprintf("subnet %s is announced with this host's address by %s: give one of them another address (--public-ip), or release that lease if its host is gone (overlayctl leases release)",
			key, r.Who())
		v.metrics.failed(kindDuplicate)
	}
	return v.peers.put(key, r)
}

// hold says that peers are held.
func (v *view) hold(n int) {
	if n == 0 {
		return
	}
	v.metrics.errors.WithLabelValues(kindVanish).Add(float64(n))
	v.log.Warn("peers vanished from etcd: keeping them for a while", "count", n, "for", v.peers.grace)
}

// displace drops held peers whose subnets belong to somebody else now.
func (v *view) displace() {
	for _, key := range v.peers.kept() {
		r := v.peers.known[key]
		if holder, ok := v.set.Overlaps(r.Subnets()); ok && holder != key {
			v.peers.drop(key)
		}
	}
}

// expire lets go of peers whose time of grace is over.
func (v *view) expire(now time.Time) {
	if given := v.peers.expire(now); given > 0 {
		v.log.Warn("gave up peers that vanished", "count", given)
	}
}

// facts are what the own lease is decided from.
func (v *view) facts(g grant, vacant []netip.Prefix) facts {
	kept := sync.OnceValue(v.peers.keep) // a decision needs it seldom
	return facts{
		network: *v.config.network, set: v.set, mine: v.mine, others: v.conflicts, grant: g, revision: v.revision,
		held: func(p []netip.Prefix) bool { return kept()(p) },
		vacant: func(subnets ...netip.Prefix) bool {
			return !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return !slices.Contains(vacant, p) })
		},
	}
}

// problem is what else needs attention about the host's lease; empty: nothing.
func (v *view) problem() (text string) {
	for _, t := range v.conflicts {
		text = max(text, t) // any one, but always the same
	}
	return text
}
