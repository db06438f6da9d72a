package agent

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// ground is what the overlay stands on: what packets between the hosts and etcd pass by. Of places and publics it is only
// those within the ranges of the network in force, or of etcd's: as a rule none.
type ground struct {
	host    Host         // as it was last looked at
	etcd    []netip.Addr // likewise
	places  []backend.Place
	publics []public // sorted by address, and then by age
	stale   bool     // publics are others, or the ranges are
}

// public is where a peer is.
type public struct {
	ip   netip.Addr
	peer *subnet.Record
}

// refusal is that something would cover the ground, or is not what the host's operator allows; empty: it would not.
type refusal string

func (r refusal) Error() string { return string(r) }

// ranges are those of the networks that there are.
func ranges(networks ...*subnet.Network) (all []netip.Prefix) {
	for _, n := range networks {
		if n != nil {
			for _, pool := range n.Pools {
				all = append(all, pool.Prefix)
			}
		}
	}
	return all
}

// publicIn says whether the public IP of an endpoint is in one of the ranges.
func publicIn(ranges []netip.Prefix) func(subnet.Endpoint) bool {
	return func(e subnet.Endpoint) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(e.PublicIP) })
	}
}

// publics lists those of the peers that are in these ranges.
func (a *Agent) publics(ranges ...netip.Prefix) (all []public) {
	in := publicIn(ranges)
	for _, r := range a.peers {
		for _, e := range r.Endpoints {
			if in(e) {
				all = append(all, public{e.PublicIP, r})
			}
		}
	}
	slices.SortFunc(all, func(x, y public) int { return cmp.Or(x.ip.Compare(y.ip), byAge(x.peer, y.peer)) })
	return all
}

// mustNotCover is what the network n must not.
func (a *Agent) mustNotCover(n subnet.Network) []backend.Place {
	host, own := a.ground.host, slices.Clone(a.former)
	var addrs []backend.Place
	for _, f := range slices.Sorted(maps.Keys(host.Addrs)) {
		addrs = append(addrs, backend.At(host.Addrs[f], "this host's address"), backend.At(host.PublicIPs[f], "this host's public IP"))
	}
	for _, addr := range a.ground.etcd {
		addrs = append(addrs, backend.At(addr, "etcd at"))
	}
	for _, r := range []*subnet.Record{a.own, a.cfg.Last.Last} {
		if r != nil {
			own = append(own, r.Subnets()...)
		}
	}
	return backend.Places(host.Around, addrs, n, own)
}

// unfit is the error that n is not the network for this host, whatever its peers are.
func (a *Agent) unfit(n subnet.Network) error {
	if a.cfg.Pin != nil && !slices.Equal(ranges(&n), ranges(a.cfg.Pin)) {
		return fmt.Errorf("etcd's network %s is not the one that network: pins (%s)", n, a.cfg.Pin)
	}
	return backend.Covers(n, a.mustNotCover(n))
}

// refuseNetwork is the refusal of a network that the backend can do. What the host has had already is not refused.
func (a *Agent) refuseNetwork(n subnet.Network) error {
	before := a.network
	if last, err := subnet.ParseNetwork(a.cfg.Last.Config); before == nil && err == nil {
		before = &last
	}
	if before != nil && slices.Equal(ranges(before), ranges(&n)) {
		return nil
	}
	if err := a.unfit(n); err != nil {
		return refusal(err.Error())
	}
	for _, r := range ranges(&n) {
		covered := a.publics(r)
		// Where there is no other network to stay with it must be most hosts: else it is the lease that says so that lies.
		if len(covered) > 0 && (before != nil || 2*len(covered) > len(a.peers)) {
			return refusal(fmt.Sprintf("the network %s covers %s, the public IP of %s: use another range", r, covered[0].ip, covered[0].peer.Who()))
		}
	}
	return nil
}

// take makes n the network that the host has in force, unless another network of the host's is in its way.
func (a *Agent) take(n subnet.Network) error {
	if err := a.cfg.Share.take(n); err != nil {
		return refusal(err.Error())
	}
	return nil
}

// byAge orders leases: of two where only one can be, the first counts.
func byAge(a, b *subnet.Record) int {
	if a.CreateRevision != b.CreateRevision {
		return cmp.Compare(a.CreateRevision, b.CreateRevision)
	}
	return cmp.Compare(a.Key(), b.Key())
}

// swallows says what of the ground a peer's subnet covers.
func (a *Agent) swallows(r *subnet.Record) refusal {
	if len(a.ground.places)+len(a.ground.publics) == 0 || reservation(*r) {
		return ""
	}
	for _, e := range r.Endpoints {
		for _, p := range a.ground.places {
			// Where the network itself lies within what is on a link, which the host says, each peer does.
			if e.Subnet.Overlaps(p.Prefix) && (e.Subnet.Bits() <= p.Prefix.Bits() || !slices.ContainsFunc(ranges(a.network), p.Prefix.Overlaps)) {
				return refusal(fmt.Sprintf("%s covers %s, which is to be reached without it", e.Subnet, p.Name))
			}
		}
		at, _ := slices.BinarySearchFunc(a.ground.publics, e.Subnet.Addr(), func(p public, first netip.Addr) int { return p.ip.Compare(first) })
		for _, p := range a.ground.publics[at:] {
			if !e.Subnet.Contains(p.ip) {
				break
			}
			if byAge(p.peer, r) < 0 {
				return refusal(fmt.Sprintf("%s covers %s, the public IP of %s, whose lease is older", e.Subnet, p.ip, p.peer.Who()))
			}
		}
	}
	return ""
}

// survey looks at the ground anew. It says what is wrong with the network in force, which stays so, for to end it would cut
// off containers; and returns the peers that must be planned again.
func (a *Agent) survey() (keys []string) {
	a.attend(problemNetwork, a.unfit(*a.network))
	ranges := ranges(a.network, a.latest.Network)
	a.ground.places = slices.DeleteFunc(a.mustNotCover(*a.network), func(p backend.Place) bool {
		return !slices.ContainsFunc(ranges, p.Prefix.Overlaps)
	})
	a.ground.publics, a.ground.stale = a.publics(ranges...), false
	for key, r := range a.peers {
		if was, _ := a.errs[key].(refusal); was != a.swallows(r) {
			keys = append(keys, key)
		}
	}
	return keys
}
