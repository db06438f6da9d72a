package etcdstore

import (
	"fmt"
	"net/netip"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// guard keeps two hosts that do not know of each other from getting one address under two keys. As a rule both would
// have it under one key, which only one of them can create. There are two exceptions, and they are claimed together
// with guard keys, at which everybody looks who claims: a guard that is newer than what he knows ends the claim, and he
// learns why. The guards end with the lease, whose key everybody has heard of then.
//
//   - In a network of two families flannel chooses a subnet of each, and a host may bring such a pair along, whose
//     halves are of two slots. It has a guard for each half, and looks at the keys of both slots.
//   - A host that cannot follow the network config in etcd goes on with an older one, which may cut the range
//     differently. It has one guard for all, and looks at all keys.
type guard struct {
	known []clientv3.Cmp // hold if nothing is newer than what the host knows
	put   []string       // keys to put with the claim
}

// claim is what a guard depends on.
type claim struct {
	subnets  []netip.Prefix
	network  subnet.Network
	current  bool  // network is the one in etcd
	revision int64 // up to which everything is known
}

func (s *Store) guard(c claim) guard {
	var g guard
	known := func(cmp clientv3.Cmp) { g.known = append(g.known, clientv3.Compare(cmp, "<", c.revision+1)) }
	all := s.guardsKey()
	known(clientv3.ModRevision(all))
	if !c.current {
		known(clientv3.ModRevision(s.leasePrefix()).WithPrefix())
		g.put = append(g.put, all)
	}
	if len(c.subnets) < 2 {
		return g
	}
	slots := c.network.SlotsWith(c.subnets)
	pair := len(slots) != 1 || !slices.Equal(c.network.Slot(slots[0]), c.subnets)
	for _, p := range c.subnets {
		half := s.guardKey(p)
		known(clientv3.ModRevision(half))
		if pair {
			g.put = append(g.put, half)
		}
	}
	if pair {
		for _, slot := range slots {
			known(clientv3.ModRevision(s.leasePrefix() + keyOf(c.network.Slot(slot))))
		}
	}
	return g
}

// guardsKey is the guard for all, and the path to those for halves.
func (s *Store) guardsKey() string { return s.prefix + "/overlayd/claims" }

// guardKey is the guard for a half of a pair.
func (s *Store) guardKey(p netip.Prefix) string {
	return fmt.Sprintf("%s/%s-%d", s.guardsKey(), p.Addr(), p.Bits())
}
