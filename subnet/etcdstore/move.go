package etcdstore

import (
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/subnet"
)

// find goes along with a move that is seen before etcd has said that it is done, or whose answer was lost.
func (c *claimer) find(f facts) {
	if there, _ := c.look(f); there != nobody || !c.had {
		return
	}
	for key, r := range f.mine {
		if r.HostID == c.wish.HostID && len(c.shared(r.Subnets())) > 0 {
			c.moved(key, r.Subnets(), r.ModRevision)
			return
		}
	}
}

// moved takes in that the lease is under another key now.
func (c *claimer) moved(key string, place []netip.Prefix, revision int64) {
	c.place, c.key, c.kept, c.wrote = place, key, c.shared(place), revision
}

// shared are those of some subnets that the host has already.
func (c *claimer) shared(place []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(place), func(p netip.Prefix) bool { return !slices.Contains(c.have(), p) })
}

// beside is another key that has an address of what the host means to keep, one that is older if there is any.
func (c *claimer) beside(f facts) (key string, older bool) {
	for key, older = range f.set.Beside(c.key, c.have()) {
		if older {
			break
		}
	}
	return key, older
}

// have is what the host has of its place: what was to be beside it may be somebody else's.
func (c *claimer) have() []netip.Prefix {
	if c.kept != nil {
		return c.kept
	}
	return c.place
}

// moving says whether a move is done that is not seen yet.
func (c *claimer) moving(f facts) bool { return c.kept != nil && c.wrote > f.revision }

// move changes the lease to one with the families that the network has now, and keeps the half that it has: containers
// have addresses of that. The key is another, so one transaction deletes the one and creates the other. Nobody can take
// the kept half meanwhile; but the new key is younger than any other that names an address of it, so there must be none. It is
// no move if the network leases no half of it.
func (c *claimer) move(f facts, r *subnet.Record) (decision, bool) {
	have := c.have()
	kept := fitting(f.network, have)
	if len(kept) == 0 || len(kept) == len(f.network.Pools) && len(kept) == len(have) {
		return decision{}, false
	}
	d := c.begin(f, ours, r)
	place, err := f.network.Allocate(kept, c.wish.HostID, c.taken(f))
	if err != nil {
		d.open, d.reason = false, err.Error()
		return d, c.had
	}
	return c.send(d, write{key: keyOf(place), place: place, leaseID: d.keep, from: r}, leaseFor(c.wish, place), f), true
}
