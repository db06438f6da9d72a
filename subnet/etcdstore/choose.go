package etcdstore

import (
	"context"
	"net/netip"

	"github.com/overlayd/overlayd/subnet"
)

// choice is what a host can choose a subnet from.
type choice struct {
	wish     subnet.Lease
	network  subnet.Network
	set      *subnet.Set
	previous []netip.Prefix
	taken    func([]netip.Prefix) bool // beyond those in set
	gaveUp   string                    // key of a lease that the host has no use for any more
}

// choose returns the subnets that the host should claim: a reservation for it, else a lease that it has, else the one
// it had before if it is free, else a free one. The error wraps subnet.ErrOutOfSubnets.
func (c choice) choose() ([]netip.Prefix, error) {
	var best *subnet.Record
	rank := 0
	for _, r := range c.set.All() {
		// Containers may have the host's own subnet: it stays, also when new leases are made elsewhere.
		stays := r.HostID == c.wish.HostID && r.Key() != c.gaveUp && len(r.Endpoints) == len(c.network.Pools)
		if ownerOf(r.Lease, c.wish) != ours || !stays && !c.network.Fits(r.Subnets()) {
			continue
		}
		if n := c.rank(r); n > rank || n == rank && r.CreateRevision < best.CreateRevision {
			best, rank = r, n
		}
	}
	if rank > 0 {
		return best.Subnets(), nil
	}
	taken := func(p []netip.Prefix) bool {
		_, overlaps := c.set.Overlaps(p)
		return overlaps || c.taken(p)
	}
	if c.network.Fits(c.previous) && !taken(c.previous) {
		return c.previous, nil
	}
	return c.network.Allocate(c.wish.HostID, taken)
}

// rank orders the leases that are the host's own: the higher the better.
func (c choice) rank(r *subnet.Record) int {
	switch {
	case r.LeaseID == 0:
		return 4
	case r.HostID == c.wish.HostID && r.Key() == keyOf(c.previous):
		return 3
	case r.HostID == c.wish.HostID:
		return 2
	}
	return 1
}

func keyOf(subnets []netip.Prefix) string {
	l := subnet.Lease{Endpoints: make([]subnet.Endpoint, len(subnets))}
	for i, p := range subnets {
		l.Endpoints[i].Subnet = p
	}
	return l.Key()
}

// Choose tells which subnets a host would claim if it joined now, and what leases there are. It claims nothing.
func (s *Store) Choose(ctx context.Context, cfg JoinConfig, wish subnet.Lease) ([]netip.Prefix, Listing, error) {
	raw, _, err := s.Network(ctx)
	if err != nil {
		return nil, Listing{}, err
	}
	network, err := subnet.ParseNetwork(raw)
	if err != nil {
		return nil, Listing{}, err
	}
	set, revision, err := s.list(ctx, network)
	if err != nil {
		return nil, Listing{}, err
	}
	wish.HostID, wish.Host = cfg.HostID, cfg.Host
	c := choice{
		wish: wish, network: network, set: set, previous: cfg.Previous,
		taken: func([]netip.Prefix) bool { return false },
	}
	subnets, err := c.choose()
	return subnets, newListing(set, revision), err
}
