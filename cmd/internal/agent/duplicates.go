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

// claim is to what the kernel finds a host by, on one link: only one peer can have it.
type claim struct {
	link string
	mac  kernel.MAC   // of vxlan
	key  kernel.WGKey // of wireguard; zero: it is a MAC
}

// claimsIn are those that a peer's objects make.
func claimsIn(objs []kernel.Object) iter.Seq[claim] {
	return func(yield func(claim) bool) {
		for _, o := range objs {
			switch o := o.(type) {
			case kernel.FDB:
				if !yield(claim{link: o.Link, mac: o.MAC}) {
					return
				}
			case kernel.WGPeer:
				if !yield(claim{link: o.Link, key: o.Public}) {
					return
				}
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
	second, _ := backend.Also(before.Lease)
	for _, l := range []subnet.Lease{before.Lease, second} { // all its ways, whichever is used
		_, objs, _ := a.planner.reach(a.own.Lease, l, func(netip.Addr) bool { return false }) // none of a bad lease
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

// verdict says why a peer is not reached that could be: it covers the ground, or an older one has its MAC or key.
func (a *Agent) verdict(key string, w way) error {
	delete(a.conflicting, key)
	if same, is := w.err.(backend.OwnError); is {
		mine := claim{mac: same.MAC, key: same.Key}
		if byAge(a.own, w.peer) < 0 {
			return mine.duplicate(a.own)
		}
		a.conflicting[key] = mine.duplicate(w.peer)
	}
	if w.objs == nil {
		return w.err
	}
	if no := a.swallows(w.peer); no != "" {
		return no
	}
	for c := range claimsIn(w.objs) {
		if first := a.peers[a.claims[c][0]]; !c.sameHost(first.Lease, w.peer.Lease) {
			return c.duplicate(first)
		}
	}
	return nil
}

// sameHost says whether two leases are one host's: it has two while it moves from one to the other. Several hosts may be behind
// one address, each with a key of its own.
func (c claim) sameHost(a, b subnet.Lease) bool {
	if c.key != (kernel.WGKey{}) && a.HostID+b.HostID != "" {
		return a.HostID == b.HostID
	}
	return a.SameAddresses(b)
}

// duplicate is the error that what is claimed is another host's.
func (c claim) duplicate(owner *subnet.Record) error {
	if c.key != (kernel.WGKey{}) {
		return fmt.Errorf("PublicKey %s is that of %s, whose lease is older: give the younger one a key of its own (on its host: overlayctl wireguard rotate)",
			c.key, owner.Who())
	}
	return fmt.Errorf("VtepMAC %s is that of %s, whose lease is older: give the younger one a MAC of its own (on its host stop overlayd, delete its vxlan links, start it again)",
		c.mac, owner.Who())
}
