package etcdstore

import (
	"context"
	"net/netip"

	"github.com/overlayd/overlayd/subnet"
)

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
