package agent

import (
	"maps"
	"slices"
	"time"
)

// keepCache has the lease cache written if it is older than the view, and etcd was heard since.
func (a *Agent) keepCache() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cached || a.fromCache || !a.complete || a.own == nil {
		return
	}
	a.cacheTried = time.Now()
	select {
	case a.saves <- View{Config: a.config, Own: a.own, Peers: slices.Collect(maps.Values(a.peers))}:
		a.cached = true
	default: // one is being written still
	}
}

// save writes the cache beside the loop, until that ends: the cache of a large network takes longer than an event may
// wait.
func (a *Agent) save() error {
	for v := range a.saves {
		err := a.cfg.State.SaveView(v)
		a.mu.Lock()
		if err != nil {
			a.cached = false
			a.complain(problemCache, err.Error())
		} else {
			a.settle(problemCache)
		}
		a.mu.Unlock()
		v = View{}
		a.settled()
	}
	return nil
}
