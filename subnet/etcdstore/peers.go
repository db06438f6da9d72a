package etcdstore

import (
	"time"

	"github.com/overlayd/overlayd/subnet"
)

const (
	// togetherWithin is the time within which departures count as one.
	togetherWithin = 10 * time.Second
	// fewPeers may always leave together.
	fewPeers = 8
)

// peers is what the host has been told of its peers. One that vanishes from etcd is gone at once. When more than
// fewPeers, and more than a quarter of all, vanish together, that looks like a trouble of etcd and not of the hosts:
// all of them are kept for the time of grace, also those that the host believes gone already.
type peers struct {
	grace time.Duration
	known map[string]subnet.Record  // what the host has, including what is held
	news  map[string]*subnet.Record // what the host has not taken yet
	left  map[string]departure      // lately
	held  map[string]time.Time      // in known but not in etcd: until when
	first time.Time                 // none of held ends before; zero: nothing was held since expire
}

type departure struct {
	record subnet.Record
	at     time.Time
}

func newPeers(grace time.Duration) *peers {
	return &peers{
		grace: grace,
		known: make(map[string]subnet.Record),
		news:  make(map[string]*subnet.Record),
		left:  make(map[string]departure),
		held:  make(map[string]time.Time),
	}
}

// remember adds a peer that may be gone from etcd already.
func (p *peers) remember(key string, r subnet.Record) {
	p.known[key] = r
	p.news[key] = &r
}

// put adds or changes a peer that is in etcd. It returns whether the peer is a newcomer.
func (p *peers) put(key string, r subnet.Record) (added bool) {
	delete(p.held, key)
	delete(p.left, key)
	old, ok := p.known[key]
	if !ok || !old.Equal(r) {
		p.remember(key, r)
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

// leave takes note of peers that vanished from etcd together. It returns how many are held that were not before.
func (p *peers) leave(keys []string, now time.Time) (held int) {
	for key, d := range p.left {
		if now.Sub(d.at) > togetherWithin {
			delete(p.left, key)
		}
	}
	for _, key := range keys {
		r, ok := p.known[key]
		if _, again := p.held[key]; !ok || again {
			continue
		}
		delete(p.known, key)
		p.news[key] = nil
		p.left[key] = departure{r, now}
	}
	vanished := len(p.left) + len(p.held)
	if all := len(p.known) + len(p.left); vanished <= max(fewPeers, all/4) {
		return 0
	}
	return p.hold(now)
}

// hold takes back all recent departures.
func (p *peers) hold(now time.Time) int {
	keys := make([]string, 0, len(p.left))
	for key, d := range p.left {
		p.remember(key, d.record)
		keys = append(keys, key)
	}
	clear(p.left)
	return p.absent(keys, now)
}

// absent takes note that etcd does not hold these known peers when it was listed anew, and holds them: a list that
// lacks peers may be that of an etcd that lost them.
func (p *peers) absent(keys []string, now time.Time) (held int) {
	until := now.Add(p.grace)
	for _, key := range keys {
		if _, ok := p.held[key]; !ok {
			p.held[key] = until
			held++
		}
	}
	if held > 0 && (p.first.IsZero() || until.Before(p.first)) {
		p.first = until
	}
	return held
}

// extend gives the peers that are held their whole time of grace again.
func (p *peers) extend(now time.Time) {
	for key := range p.held {
		p.held[key] = now.Add(p.grace)
	}
}

// expire gives up the peers whose time of grace is over. It returns how many.
func (p *peers) expire(now time.Time) (n int) {
	if p.first.IsZero() || now.Before(p.first) {
		return 0
	}
	p.first = time.Time{}
	for key, until := range p.held {
		if !now.Before(until) {
			p.drop(key)
			n++
		} else if p.first.IsZero() || until.Before(p.first) {
			p.first = until
		}
	}
	return n
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
