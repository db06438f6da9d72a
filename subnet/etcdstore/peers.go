package etcdstore

import (
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/subnet"
)

const (
	// linger is how long a peer stays that vanished: a host whose key somebody deleted has it back by then.
	linger = 500 * time.Millisecond
	// togetherWithin is the time within which departures count as one.
	togetherWithin = 10 * time.Second
	// fewPeers may always leave together.
	fewPeers = 8
)

// peers is what the host has been told of its peers. One that vanishes from etcd is gone after a moment. When more than
// fewPeers, and more than a quarter of all, vanish together, or the own key with them, that looks like a trouble of etcd
// and not of the hosts: all of them are kept for the time of grace, also those that the host believes gone already.
type peers struct {
	grace time.Duration
	known map[string]*subnet.Record // what the host has, including what is kept
	news  map[string]*subnet.Record // what the host has not taken yet
	left  map[string]departure      // lately
	held  map[string]time.Time      // in known but not in etcd: until when
	first time.Time                 // nothing is to be given up before; zero: nothing is, ever
}

type departure struct {
	record *subnet.Record
	at     time.Time
	gone   bool // from known: the moment is over
}

func newPeers(grace time.Duration) *peers {
	return &peers{
		grace: grace,
		known: make(map[string]*subnet.Record),
		news:  make(map[string]*subnet.Record),
		left:  make(map[string]departure),
		held:  make(map[string]time.Time),
	}
}

// expect makes room for n peers where none are known: to grow by and by costs more than all the rest.
func (p *peers) expect(n int) {
	if len(p.known)+len(p.news) == 0 {
		p.known, p.news = make(map[string]*subnet.Record, n), make(map[string]*subnet.Record, n)
	}
}

// remember adds a peer that may be gone from etcd already.
func (p *peers) remember(key string, r *subnet.Record) {
	p.known[key] = r
	p.news[key] = r
}

// put adds or changes a peer that is in etcd. It returns whether the peer is a newcomer.
func (p *peers) put(key string, r *subnet.Record) (added bool) {
	delete(p.held, key)
	delete(p.left, key)
	old, ok := p.known[key]
	if !ok || !old.Equal(*r) || p.news[key] != nil {
		p.remember(key, r) // what is not taken yet need not be in memory twice
	}
	return !ok
}

// drop takes peers out at once that did not leave: the host itself, and whom a newcomer displaces.
func (p *peers) drop(key string) {
	delete(p.held, key)
	delete(p.left, key)
	if _, ok := p.known[key]; ok {
		delete(p.known, key)
		p.news[key] = nil
	}
}

// leave takes note of peers that vanished from etcd together; trouble says that it cannot be that they all left. It
// returns how many are held that were not before.
func (p *peers) leave(keys []string, trouble bool, now time.Time) (held int) {
	gone := 0
	for key, d := range p.left {
		switch {
		case !d.gone: // expire has not been there yet
		case now.Sub(d.at) > togetherWithin:
			delete(p.left, key)
		default:
			gone++
		}
	}
	for _, key := range keys {
		r, ok := p.known[key]
		if ok && !p.keeps(key) {
			p.left[key] = departure{record: r, at: now}
			p.wait(now.Add(linger))
		}
	}
	vanished := len(p.left) + len(p.held)
	if all := len(p.known) + gone; !trouble && vanished <= max(fewPeers, all/4) {
		return 0
	}
	return p.hold(now)
}

// keeps says whether a peer is known though it vanished.
func (p *peers) keeps(key string) bool {
	_, held := p.held[key]
	d, left := p.left[key]
	return held || left && !d.gone
}

// keep returns a function that tells whether a peer who vanished has one of the subnets: it may come back for it.
func (p *peers) keep() func([]netip.Prefix) bool {
	kept := make(map[netip.Prefix]bool)
	for _, key := range p.kept() {
		for _, s := range p.known[key].Subnets() {
			kept[s] = true
		}
	}
	return func(subnets []netip.Prefix) bool {
		return slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return kept[s] })
	}
}

// kept lists the peers that are known though they vanished.
func (p *peers) kept() (keys []string) {
	for key := range p.held {
		keys = append(keys, key)
	}
	for key, d := range p.left {
		if !d.gone {
			keys = append(keys, key)
		}
	}
	return keys
}

// wait has expire look again at t, or before.
func (p *peers) wait(t time.Time) {
	if p.first.IsZero() || t.Before(p.first) {
		p.first = t
	}
}

// hold takes back all recent departures.
func (p *peers) hold(now time.Time) int {
	keys := make([]string, 0, len(p.left))
	for key, d := range p.left {
		if d.gone {
			p.remember(key, d.record)
		}
		keys = append(keys, key)
	}
	return p.absent(keys, now)
}

// absent takes note that etcd does not hold these known peers when it was listed anew, and holds them: a list that
// lacks peers may be that of an etcd that lost them.
func (p *peers) absent(keys []string, now time.Time) (held int) {
	until := now.Add(p.grace)
	for _, key := range keys {
		delete(p.left, key)
		if _, ok := p.held[key]; !ok {
			p.held[key] = until
			held++
		}
	}
	if held > 0 {
		p.wait(until)
	}
	return held
}

// extend gives the peers that are held their whole time of grace again.
func (p *peers) extend(now time.Time) {
	for key := range p.held {
		p.held[key] = now.Add(p.grace)
	}
}

// expire lets go of the peers whose moment, or whose time of grace, is over. It returns how many there were of each.
func (p *peers) expire(now time.Time) (left, given int) {
	if p.first.IsZero() || now.Before(p.first) {
		return 0, 0
	}
	p.first = time.Time{}
	for key, d := range p.left {
		switch until := d.at.Add(linger); {
		case d.gone:
		case now.Before(until):
			p.wait(until)
		default:
			p.drop(key)
			p.left[key] = departure{d.record, d.at, true}
			left++
		}
	}
	for key, until := range p.held {
		if now.Before(until) {
			p.wait(until)
			continue
		}
		p.drop(key)
		given++
	}
	return left, given
}

// next is the earliest time at which expire may have something to do; zero: never.
func (p *peers) next() time.Time { return p.first }

// take returns what changed since the last call.
func (p *peers) take() map[string]*subnet.Record {
	if len(p.news) == 0 {
		return nil
	}
	news := p.news
	p.news = make(map[string]*subnet.Record)
	return news
}
