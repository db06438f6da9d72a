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
	return n.appendSlot(make([]netip.Prefix, 0, len(n.Pools)), i)
}

// SlotsWith lists the slots that have one of these subnets, which fit the network. It is one for subnets that
// [Network.Allocate] picks; flannel picks for each family by itself.
func (n Network) SlotsWith(subnets []netip.Prefix) []uint64 {
	var slots []uint64
	for i, p := range subnets {
		pool := n.Pools[i]
		slot := number(p.Addr()).sub(number(pool.Min)).shiftRight(pool.hostBits())
		if slot.hi == 0 && slot.lo < n.Slots() && !slices.Contains(slots, slot.lo) {
			slots = append(slots, slot.lo)
		}
	}
	return slots
}

func (n Network) appendSlot(subnets []netip.Prefix, i uint64) []netip.Prefix {
	for _, p := range n.Pools {
		a := number(p.Min).add(uint128{lo: i}.shiftLeft(p.hostBits())).addr(FamilyOf(p.Min))
		subnets = append(subnets, netip.PrefixFrom(a, p.SubnetLen))
	}
	return subnets
}

func (p Pool) hostBits() uint { return uint(FamilyOf(p.Min).Bits() - p.SubnetLen) }

// Fits reports whether the network would lease these subnets today: one of each family, IPv4 before IPv6, each of
// the configured length and between the first and the last one. The families need not share a slot: flannel's do not.
func (n Network) Fits(subnets []netip.Prefix) bool {
	if len(subnets) != len(n.Pools) {
		return false
	}
	for i, pool := range n.Pools {
		p := subnets[i]
		if !n.Contains(p) || p.Bits() != pool.SubnetLen || p != p.Masked() ||
			p.Addr().Less(pool.Min) || pool.Max.Less(p.Addr()) || p.Addr().Is4() != pool.Min.Is4() {
			return false
		}
	}
	return true
}

// Allocate picks a slot for which taken reports false. It begins at the slot that the 64-bit FNV-1a hash of hostID
// names, so that hosts that start at once rarely collide and a host that lost its state finds its old subnet, and goes
// on slot by slot. A network of more than 1<<20 slots is not searched to the end: there, probes are spread over the
// whole range, lest one wide key that somebody put holds up the search. taken must not keep its argument.
// The error wraps [ErrOutOfSubnets].
func (n Network) Allocate(hostID string, taken func([]netip.Prefix) bool) ([]netip.Prefix, error) {
	hash := fnv.New64a()
	hash.Write([]byte(hostID)) // never fails

	slots := n.Slots()
	step := stride(slots)
	slot := hash.Sum64() % slots
	subnets := make([]netip.Prefix, 0, len(n.Pools))
	probes := min(slots, maxProbes)
	for range probes {
		subnets = n.appendSlot(subnets[:0], slot)
		if !taken(subnets) {
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
