package subnet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// uint128 is an address as a number, so that the subnets of a pool can be counted.
type uint128 struct{ hi, lo uint64 }

func number(a netip.Addr) uint128 {
	if a.Is4() {
		b := a.As4()
		return uint128{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return uint128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (u uint128) addr(f Family) netip.Addr {
	if f == IPv4 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(u.lo))))
	}
	b := binary.BigEndian.AppendUint64(nil, u.hi)
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(b, u.lo)))
}

func (u uint128) add(v uint128) uint128 {
	lo, carry := bits.Add64(u.lo, v.lo, 0)
	hi, _ := bits.Add64(u.hi, v.hi, carry)
	return uint128{hi, lo}
}

func (u uint128) sub(v uint128) uint128 {
	lo, borrow := bits.Sub64(u.lo, v.lo, 0)
	hi, _ := bits.Sub64(u.hi, v.hi, borrow)
	return uint128{hi, lo}
}

// In both shifts a count below zero wraps around to a huge one, whose shift is 0: no case is needed for n above 64.

func (u uint128) shiftLeft(n uint) uint128 {
	return uint128{u.hi<<n | u.lo<<(n-64) | u.lo>>(64-n), u.lo << n}
}

func (u uint128) shiftRight(n uint) uint128 {
	return uint128{u.hi >> n, u.lo>>n | u.hi>>(n-64) | u.hi<<(64-n)}
}
