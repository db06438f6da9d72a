package agent

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// claim is to the MAC on a vxlan link, by which the kernel finds a host: only one peer can have it.
type claim struct {
	link string
	mac  kernel.MAC
}

// claimsIn are those that a peer's objects make.
func claimsIn(objs []kernel.Object) iter.Seq[claim] {
	return func(yield func(claim) bool) {
		for _, o := range objs {
			if f, ok := o.(kernel.FDB); ok && !yield(claim{f.Link, f.MAC}) {
				return
			}
		}
	}
}

// place is that of a peer among those, by age, who make a claim.
func (a *Agent) place(claimants []string, key string) (at int, found bool) {
	return slices.BinarySearchFunc(claimants, key, func(x, key string) int { return byAge(a.peers[x], a.peers[key]) })
}

// unclaim withdraws the claims of a peer that goes away or becomes another.
func (a *Agent) unclaim(key string, before *subnet.Record) {
	if before == nil || !a.programmed {
		return
	}
	_, objs, _ := a.planner.peer(a.own.Lease, before.Lease, func(netip.Addr) bool { return false }) // none of a bad lease
	for c := range claimsIn(objs) {
		at, found := a.place(a.claims[c], key)
		if !found {
			continue
		}
		if a.claims[c] = slices.Delete(a.claims[c], at, at+1); len(a.claims[c]) == 0 {
			delete(a.claims, c)
			continue
		}
		if at == 0 {
			a.contested[c] = true
		}
	}
}

// contend makes the claims of peers that are planned, and adds to these all whom it concerns that a claim is another's now.
func (a *Agent) contend(keys []string, ways []way) ([]string, []way) {
	for i, key := range keys {
		for c := range claimsIn(ways[i].objs) {
			claimants := a.claims[c]
			if claimants == nil {
				a.claims[c] = []string{key}
				continue
			}
			at, found := a.place(claimants, key)
			if found {
				continue
			}
			a.claims[c] = slices.Insert(claimants, at, key)
			if at == 0 {
				a.contested[c] = true
			}
		}
	}
	if len(a.contested) == 0 {
		return keys, ways
	}
	all := slices.Clone(keys)
	for c := range a.contested {
		all = append(all, a.claims[c]...)
	}
	clear(a.contested)
	slices.Sort(all)
	if all = slices.Compact(all); len(all) == len(keys) {
		return keys, ways
	}
	return all, a.reach(all)
}

// verdict says why a peer is not reached that could be: it covers the ground, or an older one has its MAC.
func (a *Agent) verdict(key string, w way) error {
	delete(a.conflicting, key)
	if same, is := w.err.(backend.OwnMACError); is {
		if byAge(a.own, w.peer) < 0 {
			return duplicate(same.MAC, a.own)
		}
		a.conflicting[key] = duplicate(same.MAC, w.peer)
	}
	if w.objs == nil {
		return w.err
	}
	if no := a.swallows(w.peer); no != "" {
		return no
	}
	for c := range claimsIn(w.objs) {
		// A host has two leases while it moves from one to the other.
		if first := a.peers[a.claims[c][0]]; !first.SameAddresses(w.peer.Lease) {
			return duplicate(c.mac, first)
		}
	}
	return nil
}

// duplicate is the error that a MAC is another host's.
func duplicate(mac kernel.MAC, owner *subnet.Record) error {
	return fmt.Errorf("VtepMAC %s is that of %s, whose lease is older: give the younger one a MAC of its own (on its host stop overlayd, delete its vxlan links, start it again)",
		mac, owner.Who())
}
