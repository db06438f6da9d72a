package names

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/overlayd/overlayd/backend/task"
)

const (
	// staysWanted is how long endpoints of a namespace are followed after the last question for one of them.
	staysWanted = 10 * time.Minute
	// listedWithin is how long the first question for a namespace waits until its endpoints are known. Resolvers wait five seconds.
	listedWithin = 2 * time.Second
	// mostWanted are the namespaces that are kept apart; of more, all are wanted.
	mostWanted = 32
)

// everything stands for all namespaces.
const everything = ""

// Demand is which namespaces this host's containers ask for: only of those must other hosts' endpoints be known here. Its methods
// may be called at any time.
type Demand struct {
	wants chan struct{}

	mu    sync.Mutex
	asked map[string]*asked
	known []string      // namespaces of which all endpoints are known; everything: of all
	news  chan struct{} // closed when known changes
}

// asked is when there were questions.
type asked struct{ first, last time.Time }

// NewDemand returns one in which nothing is wanted.
func NewDemand() *Demand {
	return &Demand{wants: make(chan struct{}, 1), asked: map[string]*asked{}, news: make(chan struct{})}
}

// Wants receives after Wanted changed.
func (d *Demand) Wants() <-chan struct{} { return d.wants }

// Wanted are the namespaces that are asked for now, sorted, or all.
func (d *Demand) Wanted() (all bool, namespaces []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for namespace, a := range d.asked {
		if now.Sub(a.last) > staysWanted {
			delete(d.asked, namespace)
			continue
		}
		namespaces = append(namespaces, namespace)
	}
	if _, all = d.asked[everything]; all {
		return true, nil
	}
	slices.Sort(namespaces)
	return false, namespaces
}

// Known says of which namespaces other hosts' endpoints are known here; an empty one: of all.
func (d *Demand) Known(namespaces []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.known, namespaces) {
		d.known = slices.Clone(namespaces)
		close(d.news)
		d.news = make(chan struct{})
	}
}

// ask wants a namespace, and says whether it is known; if not, news is closed when that may be so, for which it is worth waiting
// until a time.
func (d *Demand) ask(namespace string) (known bool, news <-chan struct{}, until time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	a := d.asked[namespace]
	if a == nil {
		if len(d.asked) >= mostWanted {
			if a = d.asked[everything]; a != nil {
				a.last = now
				return d.knows(namespace), d.news, a.first.Add(listedWithin)
			}
			namespace = everything
		}
		a = &asked{first: now}
		d.asked[namespace] = a
		task.Signal(d.wants)
	}
	a.last = now
	return d.knows(namespace), d.news, a.first.Add(listedWithin)
}

func (d *Demand) knows(namespace string) bool {
	return slices.Contains(d.known, namespace) || slices.Contains(d.known, everything)
}

// await waits until what there is in a namespace is known, and says whether it is: not if etcd does not say so in time.
func (d *Demand) await(ctx context.Context, namespace string) bool {
	for {
		known, news, until := d.ask(namespace)
		wait := time.Until(until)
		if known || wait <= 0 {
			return known
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-news:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return false
		}
	}
}
