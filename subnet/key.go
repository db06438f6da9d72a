package subnet

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// noIPv4 stands for the IPv4 subnet in the key of a lease that has none; flannel knows no key of IPv6 alone.
const noIPv4 = "0.0.0.0-0"

// maxKey is longer than any lease's key.
const maxKey = 80

// Key is the lease's name below <prefix>/subnets/: "10.5.34.0-24", "10.7.100.0-24&fc00:7:0:4c::-64", and
// "0.0.0.0-0&fc00:0:0:1a::-64" for IPv6 alone. It is empty if the lease has no subnet.
func (l Lease) Key() string { return keyOf(l.Subnets()) }

func keyOf(subnets []netip.Prefix) string {
	key := make([]byte, 0, maxKey)
	for i, p := range subnets {
		switch {
		case i > 0:
			key = append(key, '&')
		case p.Addr().Is6():
			key = append(key, noIPv4+"&"...)
		}
		key = p.Addr().AppendTo(key)
		key = append(key, '-')
		key = strconv.AppendInt(key, int64(p.Bits()), 10)
	}
	return string(key)
}

// ParseKey returns the subnets, IPv4 before IPv6, that a name below <prefix>/subnets/ claims. It takes nothing but
// what [Lease.Key] writes.
func ParseKey(name string) ([]netip.Prefix, error) {
	subnets, err := parseKey(name)
	if err != nil {
		return nil, fmt.Errorf("lease key %q: %w", clip(name), err)
	}
	return subnets, nil
}

func parseKey(name string) ([]netip.Prefix, error) {
	if len(name) > maxKey {
		return nil, errors.New("too long")
	}
	var subnets []netip.Prefix
	first, second, dual := strings.Cut(name, "&")
	if !dual || first != noIPv4 {
		p, err := parseKeyPart(first, IPv4)
		if err != nil {
			return nil, err
		}
		subnets = append(subnets, p)
	}
	if dual {
		p, err := parseKeyPart(second, IPv6)
		if err != nil {
			return nil, err
		}
		subnets = append(subnets, p)
	}
	// Two names of one subnet would be two claims on it that one transaction does not see.
	if canonical := keyOf(subnets); canonical != name {
		return nil, fmt.Errorf("must be spelled %q", canonical)
	}
	return subnets, nil
}

func parseKeyPart(part string, f Family) (netip.Prefix, error) {
	addr, length, _ := strings.Cut(part, "-")
	p, err := netip.ParsePrefix(addr + "/" + length)
	if err != nil || FamilyOf(p.Addr()) != f || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not an %s subnet in the form <address>-<length>", part, f)
	}
	// flannel reads no longer ones either.
	if p.Bits() == 0 || p.Bits() == f.Bits() {
		return netip.Prefix{}, fmt.Errorf("%q is not a subnet: its length must be 1 to %d", part, f.Bits()-1)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s has host bits set: the subnet is %s", p, p.Masked())
	}
	return p, nil
}
