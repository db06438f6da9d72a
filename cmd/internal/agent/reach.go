package agent

import (
	"maps"
	"slices"
	"sync"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// planPeers plans the objects of some peers; those that are gone, or cannot be reached, have none. It sorts the keys: it
// must be no chance which peers are refused where they name too many VNIs, nor who claims first what two of them claim.
func (a *Agent) planPeers(keys []string) []kernel.Claim {
	slices.Sort(keys)
	keys = slices.Compact(keys)
	a.findNear(keys)
	own := a.planner.self(a.own.Lease)
	keys, ways := a.contend(keys, a.reach(keys))
	claims := make([]kernel.Claim, len(keys), len(keys)+2) // with self and retired
	for i, way := range ways {
		key := keys[i]
		err := a.verdict(key, way)
		if err == nil {
			way.objs, err = a.planner.admit(way.objs, own)
		}
		if err != nil {
			way.objs = nil
		}
		claims[i] = kernel.Claim{Owner: key, Objects: way.objs}
		if err == nil {
			delete(a.errs, key)
			continue
		}
		if before := a.errs[key]; before == nil || before.Error() != err.Error() {
			a.cfg.Log.Warn("peer cannot be reached", "subnet", key, "peer", a.peers[key].Host, "err", err)
		}
		a.errs[key] = err
	}
	var conflict error
	if keys := slices.Sorted(maps.Keys(a.conflicting)); len(keys) > 0 {
		conflict = a.conflicting[keys[0]]
	}
	a.attend(problemIdentity, conflict)
	a.share()
	return claims
}

// way is how a peer is reached, or why it is not. One that is gone, or need not be reached, has neither.
type way struct {
	peer *subnet.Record
	objs []kernel.Object
	err  error
}

// reach plans the ways to some peers, on all CPUs if they are many.
func (a *Agent) reach(keys []string) []way {
	const together = 1000
	ways := make([]way, len(keys))
	some := func(from int) {
		for i := from; i < min(from+together, len(keys)); i++ {
			peer, ok := a.peers[keys[i]]
			if !ok || reservation(*peer) {
				continue
			}
			ways[i].peer = peer
			_, ways[i].objs, ways[i].err = a.planner.peer(a.own.Lease, peer.Lease, a.isNear, a.retirement.met[keys[i]])
		}
	}
	var others sync.WaitGroup
	for from := together; from < len(keys); from += together {
		others.Go(func() { some(from) })
	}
	some(0)
	others.Wait()
	return ways
}

// reservation says whether a lease is only kept for a host that does not run.
func reservation(r subnet.Record) bool { return r.LeaseID == 0 && r.Backend == "" }
