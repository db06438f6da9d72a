package subnet

import (
	"fmt"
	"net/netip"

	"go4.org/netipx"
)

// Pool is the range of one family that leases are cut from.
type Pool struct {
	Prefix    netip.Prefix // the whole overlay network, masked
	SubnetLen int          // prefix length of each lease
	Min, Max  netip.Addr   // address of the first and of the last subnet that may be leased
}

// keysOfPool are the names of one family's keys in the network configuration.
type keysOfPool struct {
	family                            Family
	enable, network, length, min, max string
	example                           string
	usualLen                          int // SubnetLen where the network has room for four such subnets
}

var poolKeys = []keysOfPool{
	{IPv4, "EnableIPv4", "Network", "SubnetLen", "SubnetMin", "SubnetMax", "10.244.0.0/16", 24},
	{IPv6, "EnableIPv6", "IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "fd00:244::/48", 64},
}

// reserved are the ranges that an overlay must not touch.
var reserved = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this host"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::/127"), "unspecified and loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

func parsePool(c config, keys keysOfPool) (Pool, error) {
	prefix, err := parseRange(c, keys)
	if err != nil {
		return Pool{}, err
	}
	pool := Pool{Prefix: prefix}
	if pool.SubnetLen, err = parseSubnetLen(c, keys, prefix); err != nil {
		return Pool{}, err
	}
	// The first subnet is left out unless asked for: its address is the network's, which some tools take for a
	// broadcast address.
	first := netip.PrefixFrom(prefix.Addr(), pool.SubnetLen)
	if pool.Min, err = parseBound(c, keys.min, pool, netipx.PrefixLastIP(first).Next()); err != nil {
		return Pool{}, err
	}
	last := netip.PrefixFrom(netipx.PrefixLastIP(prefix), pool.SubnetLen).Masked().Addr()
	if pool.Max, err = parseBound(c, keys.max, pool, last); err != nil {
		return Pool{}, err
	}
	if pool.Max.Less(pool.Min) {
		return Pool{}, fmt.Errorf("%s: %s lies behind %s %s: no subnet is left to lease", keys.min, pool.Min, keys.max, pool.Max)
	}
	return pool, nil
}

func parseRange(c config, keys keysOfPool) (netip.Prefix, error) {
	text, err := setting(c, keys.network, "a string", "")
	if err != nil {
		return netip.Prefix{}, err
	}
	if text == "" {
		return netip.Prefix{}, fmt.Errorf("%s: missing: give the %s range of the network, like %q, or set %s to false",
			keys.network, keys.family, keys.example, keys.enable)
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || FamilyOf(p.Addr()) != keys.family {
		return netip.Prefix{}, fmt.Errorf("%s: %q is not an %s range like %q", keys.network, clip(text), keys.family, keys.example)
	}
	p = p.Masked()
	for _, r := range reserved {
		if p.Overlaps(r.prefix) {
			return netip.Prefix{}, fmt.Errorf("%s: %s overlaps %s (%s): choose a private range like %q",
				keys.network, p, r.prefix, r.what, keys.example)
		}
	}
	return p, nil
}

// parseSubnetLen applies flannel's rules: a network has room for four subnets, and a subnet for two hosts.
func parseSubnetLen(c config, keys keysOfPool, network netip.Prefix) (int, error) {
	shortest, longest := network.Bits()+2, keys.family.Bits()-2
	if shortest > longest {
		return 0, fmt.Errorf("%s: %s is too small for four subnets: choose a /%d or larger", keys.network, network, longest-2)
	}
	length, err := setting(c, keys.length, "a whole number", uint64(0))
	if err != nil {
		return 0, err
	}
	switch {
	case length == 0:
		return max(keys.usualLen, shortest), nil
	case length < uint64(shortest):
		return 0, fmt.Errorf("%s: %d leaves no room for four subnets in %s %s: choose %d to %d",
			keys.length, length, keys.network, network, shortest, longest)
	case length > uint64(longest):
		return 0, fmt.Errorf("%s: %d leaves no room for hosts in a subnet: choose %d to %d",
			keys.length, length, shortest, longest)
	}
	return int(length), nil
}

func parseBound(c config, key string, pool Pool, byDefault netip.Addr) (netip.Addr, error) {
	text, err := setting(c, key, "a string", byDefault.String())
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%s: %q is not an address like %q", key, clip(text), byDefault)
	}
	if !pool.Prefix.Contains(a) {
		return netip.Addr{}, fmt.Errorf("%s: %s lies outside the network %s", key, a, pool.Prefix)
	}
	if start := netip.PrefixFrom(a, pool.SubnetLen).Masked().Addr(); start != a {
		return netip.Addr{}, fmt.Errorf("%s: %s is not the start of a /%d subnet: choose %s", key, a, pool.SubnetLen, start)
	}
	return a, nil
}
