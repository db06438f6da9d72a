package subnet

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
)

// ErrOutOfSubnets says that a network has no subnet left to lease.
var ErrOutOfSubnets = errors.New("out of subnets")

const (
	maxSlots  = 1 << 62 // more are not counted, so that sums of two slots fit in a uint64
	maxProbes = 1 << 20 // slots that one allocation looks at: well below a second
)

// Slots is how many leases the network has room for, at most 1<<62. Slot i is the i-th subnet of each family's pool,
// so that a lease has one number in both; the smaller pool ends them.
func (n Network) Slots() uint64 {
	slots := uint64(maxSlots)
	for _, p := range n.Pools {
		last := number(p.Max).sub(number(p.Min)).shiftRight(p.hostBits())
		if last.hi == 0 && last.lo < slots {
			slots = last.lo + 1
		}
	}
	return slots
}

// Slot returns the subnets of slot i, IPv4 before IPv6; i must be less than [Network.Slots].
func (n Network) Slot(i uint64) []netip.Prefix {
	subnets := make([]netip.Prefix, len(n.Pools))
	for f, p := range n.Pools {
		a := number(p.Min).add(uint128{lo: i}.shiftLeft(p.hostBits())).addr(FamilyOf(p.Min))
		subnets[f] = netip.PrefixFrom(a, p.SubnetLen)
	}
	return subnets
}

func (p Pool) hostBits() uint { return uint(FamilyOf(p.Min).Bits() - p.SubnetLen) }

// slot is the number of a subnet that the pool leases.
func (p Pool) slot(subnet netip.Prefix) uint128 {
	return number(subnet.Addr()).sub(number(p.Min)).shiftRight(p.hostBits())
}

// Leases reports whether the pool would lease this subnet today. Whatever lies outside the network, or is of the other
// family, sorts before the first or behind the last one.
func (p Pool) Leases(subnet netip.Prefix) bool {
	a := subnet.Addr()
	return subnet.Bits() == p.SubnetLen && subnet == subnet.Masked() && !a.Less(p.Min) && !p.Max.Less(a)
}

// Fits reports whether the network would lease these subnets today: one of each family, IPv4 before IPv6, each of
// the configured length and between the first and the last one. The families need not share a slot: flannel's do not.
func (n Network) Fits(subnets []netip.Prefix) bool {
	if len(subnets) != len(n.Pools) {
		return false
	}
	for i, pool := range n.Pools {
		if !pool.Leases(subnets[i]) {
			return false
		}
	}
	return true
}

// Allocate picks a subnet of each family. It keeps what a host has where the network would lease it today, and picks a
// slot of the other families for which taken reports false: no container loses its address when an operator turns a
// family on, or another off.
//
// It begins at the slot of what is kept, so that a lease has one number in both families where it can; else at the slot
// that the 64-bit FNV-1a hash of hostID names, so that hosts that start at once rarely collide and a host that lost its
// state finds its old subnet; and goes on slot by slot. A network of more than 1<<20 slots is not searched to the end:
// there, probes are spread over the whole range, lest one wide key that somebody put holds up the search. taken is asked
// only of the subnets that would be new. The error wraps [ErrOutOfSubnets].
func (n Network) Allocate(have []netip.Prefix, hostID string, taken func([]netip.Prefix) bool) ([]netip.Prefix, error) {
	hash := fnv.New64a()
	hash.Write([]byte(hostID)) // never fails

	slot := hash.Sum64()
	subnets := make([]netip.Prefix, len(n.Pools))
	var missing Network
	for i, pool := range n.Pools {
		if kept := slices.IndexFunc(have, pool.Leases); kept >= 0 {
			subnets[i], slot = have[kept], pool.slot(have[kept]).lo
		} else {
			missing.Pools = append(missing.Pools, pool)
		}
	}
	if len(missing.Pools) == 0 {
		return subnets, nil
	}
	found, err := missing.search(slot%missing.Slots(), taken)
	if err != nil {
		return nil, err
	}
	for i := range subnets {
		if !subnets[i].IsValid() {
			subnets[i], found = found[0], found[1:]
		}
	}
	return subnets, nil
}

// search returns the subnets of the first free slot from this one on.
func (n Network) search(slot uint64, taken func([]netip.Prefix) bool) ([]netip.Prefix, error) {
	slots := n.Slots()
	step := stride(slots)
	probes := min(slots, maxProbes)
	for range probes {
		if subnets := n.Slot(slot); !taken(subnets) {
			return subnets, nil
		}
		slot = (slot + step) % slots
	}
	return nil, fmt.Errorf("%w: %d of the network's %d subnets were tried, all are taken in %s: release leases that "+
		"nobody uses (overlayctl leases list), or give the network a wider range or smaller subnets",
		ErrOutOfSubnets, probes, slots, n)
}

// stride is the distance between two probes, without a divisor in common with slots so that they meet each slot once.
func stride(slots uint64) uint64 {
	if slots <= maxProbes {
		return 1
	}
	step := slots / 1000 * 618 // near the golden section, whose multiples spread most evenly
	for gcd(step, slots) != 1 {
		step++
	}
	return step
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
