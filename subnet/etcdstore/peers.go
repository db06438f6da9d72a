package etcdstore

import (
	"maps"
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
	grace    time.Duration
	known    map[string]*subnet.Record // what the host has, including what is kept
	news     map[string]*subnet.Record // what the host has not taken yet
	vanished map[string]*absence       // who is not in etcd any more
	first    time.Time                 // nothing is to be given up before; zero: nothing is, ever
}

// absence is of a peer that vanished from etcd.
type absence struct {
	record *subnet.Record
	stage  stage
	until  time.Time
}

// stage is what becomes of a peer that vanished.
type stage uint8

const (
	leaving stage = iota // known until the moment is over
	gone                 // not known any more; counts as one of those that leave together until then
	held                 // known until the time of grace is over
)

func newPeers(grace time.Duration) *peers {
	return &peers{
		grace:    grace,
		known:    make(map[string]*subnet.Record),
		news:     make(map[string]*subnet.Record),
		vanished: make(map[string]*absence),
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
	delete(p.vanished, key)
	old, ok := p.known[key]
	if !ok || !old.Equal(*r) || p.news[key] != nil {
		p.remember(key, r) // what is not taken yet need not be in memory twice
	}
	return !ok
}

// drop takes peers out at once that did not leave: the host itself, and whom a newcomer displaces.
func (p *peers) drop(key string) {
	delete(p.vanished, key)
	p.forget(key)
}

func (p *peers) forget(key string) {
	if _, ok := p.known[key]; ok {
		delete(p.known, key)
		p.news[key] = nil
	}
}

// leave takes note of peers that vanished from etcd together; trouble says that it cannot be that they all left. It
// returns how many are held that were not before.
func (p *peers) leave(keys []string, trouble bool, now time.Time) (count int) {
	all := len(p.known)
	for key, v := range p.vanished {
		if v.stage == gone && now.After(v.until) {
			delete(p.vanished, key)
		} else if v.stage == gone {
			all++
		}
	}
	for _, key := range keys {
		if r, ok := p.known[key]; ok && p.vanished[key] == nil {
			p.vanished[key] = &absence{r, leaving, now.Add(linger)}
			p.wait(now.Add(linger))
		}
	}
	if !trouble && len(p.vanished) <= max(fewPeers, all/4) {
		return 0
	}
	return p.absent(slices.Collect(maps.Keys(p.vanished)), now)
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
	for key, v := range p.vanished {
		if v.stage != gone {
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

// absent takes note that etcd does not hold these peers, and holds them, those too that are gone already: a list that
// lacks peers may be that of an etcd that lost them. It returns how many are held that were not before.
func (p *peers) absent(keys []string, now time.Time) (count int) {
	until := now.Add(p.grace)
	for _, key := range keys {
		v := p.vanished[key]
		if v != nil && v.stage == held {
			continue
		}
		if v != nil && v.stage == gone {
			p.remember(key, v.record)
		}
		p.vanished[key] = &absence{p.known[key], held, until}
		p.wait(until)
		count++
	}
	return count
}

// extend gives the peers that are held their whole time of grace again.
func (p *peers) extend(now time.Time) {
	for _, v := range p.vanished {
		if v.stage == held {
			v.until = now.Add(p.grace)
		}
	}
}

// expire lets go of the peers whose moment, or whose time of grace, is over. It returns of how many the latter.
func (p *peers) expire(now time.Time) (given int) {
	if p.first.IsZero() || now.Before(p.first) {
		return 0
	}
	p.first = time.Time{}
	for key, v := range p.vanished {
		switch {
		case v.stage == gone:
		case now.Before(v.until):
			p.wait(v.until)
		case v.stage == held:
			p.drop(key)
			given++
		default:
			p.forget(key)
			v.stage, v.until = gone, v.until.Add(togetherWithin-linger)
		}
	}
	return given
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
