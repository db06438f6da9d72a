package etcdstore

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/subnet"
)

// past is what the host remembers of itself.
type past struct {
	subnets  []netip.Prefix // that it had, asked for again
	last     *subnet.Record // of these the lease; nil: it does not remember one
	sameBoot bool           // it was this boot of this machine
	nic      string         // MAC that the underlay's link had
}

func (cfg JoinConfig) past() past {
	return past{cfg.Previous, cfg.Last.Last, cfg.Last.SameBoot, cfg.Last.NIC}
}

// choose picks the subnets to claim: a reservation for the host, else a lease that it has, else one that it had under an
// identity that is lost, else what it had before if that is free, else free ones.
func (c *claimer) choose(f facts) (decision, bool) {
	best, copied := c.best(f)
	switch {
	case copied != nil:
		return decision{state: Copied, reason: fmt.Sprintf("the identity of this host is that of %s, which has subnet %s: this host is a copy of it, or came back with another address and network card",
			copied.Who(), copied.Key())}, false
	case best != nil:
		c.place, c.key = best.Subnets(), best.Key()
		return decision{}, true
	}
	if r := c.former(f); r != nil {
		c.place, c.key, c.was = r.Subnets(), r.Key(), r.HostID
		return decision{}, true
	}
	place := c.past.subnets
	if len(c.last.Endpoints) > 0 {
		place = c.last.Subnets()
	}
	taken := c.taken(f)
	kept := slices.DeleteFunc(fitting(f.network, place), func(p netip.Prefix) bool { return taken([]netip.Prefix{p}) })
	place, err := f.network.Allocate(kept, c.wish.HostID, taken)
	if err != nil {
		return decision{state: Claiming, reason: err.Error()}, false
	}
	c.place, c.key, c.fresh = place, keyOf(place), true
	return decision{}, true
}

// taken says whether somebody has, or may come back for, one of some subnets.
func (c *claimer) taken(f facts) func([]netip.Prefix) bool {
	return func(p []netip.Prefix) bool {
		_, overlaps := f.set.Overlaps(p)
		return overlaps || f.held(p)
	}
}

// best is the lease to go on with among the host's own; nil: there is none. copied is one of the host's identity, in etcd
// or remembered, that nothing proves to be of this machine: the host that put it may live.
func (c *claimer) best(f facts) (best, copied *subnet.Record) {
	if c.past.last != nil && !c.proves(c.past.last) {
		return nil, c.past.last
	}
	rank := 0
	for key, r := range f.mine {
		if r.HostID == c.wish.HostID && !c.proves(r) {
			return nil, r
		}
		// Containers may have the host's own subnet: it stays, also when new leases are made elsewhere.
		stays := r.HostID == c.wish.HostID && key != c.left
		if len(fitting(f.network, r.Subnets())) == 0 && !stays {
			continue
		}
		if n := c.rank(r); n > rank || n == rank && r.CreateRevision < best.CreateRevision {
			best, rank = r, n
		}
	}
	return best, nil
}

// proves says whether a lease of the host's identity is this machine's: it names this host's address, or none, or the
// host remembers to have put it in this boot, or over this network card. A copy of a host has none of these, and the
// host itself loses at least one of them only by a reboot with other hardware at another address.
func (c *claimer) proves(r *subnet.Record) bool {
	return c.past.sameBoot || c.nic != "" && c.nic == c.past.nic || len(c.last.Endpoints) > 0 ||
		sharesAddress(r.Lease, c.wish) || !slices.ContainsFunc(r.Endpoints, func(e subnet.Endpoint) bool { return e.PublicIP.IsValid() })
}

// former is a lease that the host had under an identity that is lost; nil: there is none. A host that remembers a lease has
// not lost its identity. So two daemons that both recognize a lease, on one machine say, never take it in turns.
func (c *claimer) former(f facts) (best *subnet.Record) {
	if c.past.last != nil || len(c.last.Endpoints) > 0 {
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(f.others)) {
		r, counts := f.set.Get(key)
		if counts && c.recognizes(r) && (best == nil || key == keyOf(c.past.subnets)) {
			best = r
		}
	}
	return best
}

// recognizes says whether a lease of another identity that names an address of the host was the host's own: it was put
// from the same hardware, or it says what the host's links and subnet.env still say. A copied disk has neither the
// hardware nor the links: the MAC of a new one is random. The address alone proves nothing, for many may be behind it.
func (c *claimer) recognizes(r *subnet.Record) bool {
	if r.Machine != "" && r.Machine == c.wish.Machine {
		return true
	}
	now := leaseFor(c.wish, r.Subnets())
	return slices.Equal(r.Subnets(), c.past.subnets) && slices.EqualFunc(r.Endpoints, now.Endpoints, func(a, b subnet.Endpoint) bool {
		return len(a.Data) > 0 && bytes.Equal(a.Data, b.Data)
	})
}

// rank orders the leases that are the host's own: the higher the better.
func (c *claimer) rank(r *subnet.Record) int {
	switch {
	case r.LeaseID == 0:
		return 4
	case r.HostID == c.wish.HostID && r.Key() == keyOf(c.past.subnets):
		return 3
	case r.HostID == c.wish.HostID:
		return 2
	}
	return 1
}

// reserved is the key of a reservation for the host other than its lease; empty: there is none.
func (c *claimer) reserved(f facts) string {
	if own := f.mine[c.key]; own == nil || own.LeaseID == 0 {
		return ""
	}
	for key, r := range f.mine {
		if r.LeaseID == 0 && f.network.Fits(r.Subnets()) {
			return key
		}
	}
	return ""
}

// giveBack deletes a lease of the host's own beside the one that it holds, once no container has an address of it. The
// host has such leases after it moved to another subnet, or after a restore of etcd brought back an older one.
func (c *claimer) giveBack(f facts, d *decision) {
	for _, key := range slices.Sorted(maps.Keys(f.mine)) {
		r := f.mine[key]
		if key == c.key || r.HostID != c.wish.HostID || r.LeaseID == 0 {
			continue
		}
		if d.leaves = append(slices.Clip(d.leaves), r.Subnets()...); f.vacant(r.Subnets()...) {
			d.write = &write{key: key, modRevision: r.ModRevision}
		}
	}
}

// fitting are those of some subnets that the network would lease today.
func fitting(n subnet.Network, subnets []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(subnets), func(p netip.Prefix) bool {
		return !slices.ContainsFunc(n.Pools, func(pool subnet.Pool) bool { return pool.Leases(p) })
	})
}

// restrict is the network without the families in which the host says no address, unless it says none at all.
func restrict(n subnet.Network, wish subnet.Lease) subnet.Network {
	if len(wish.Endpoints) == 0 {
		return n
	}
	pools := slices.DeleteFunc(slices.Clone(n.Pools), func(p subnet.Pool) bool {
		return !slices.ContainsFunc(wish.Endpoints, func(e subnet.Endpoint) bool {
			a := addressOf(e)
			return a.IsValid() && a.Is4() == p.Min.Is4()
		})
	})
	if len(pools) > 0 {
		n.Pools = pools
	}
	return n
}

func keyOf(subnets []netip.Prefix) string {
	l := subnet.Lease{Endpoints: make([]subnet.Endpoint, len(subnets))}
	for i, p := range subnets {
		l.Endpoints[i].Subnet = p
	}
	return l.Key()
}
