package subnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Network is a validated network configuration.
type Network struct {
	Pools   []Pool // one per enabled family, IPv4 before IPv6; never empty
	Backend Backend
	Unknown []string // paths of keys that neither flannel nor overlayd knows, sorted
}

// Backend is the network's choice of how packets travel between hosts.
type Backend struct {
	Type    string          // lower case: "vxlan", "host-gw", …
	Options json.RawMessage // the whole Backend object as configured, Type included, compact; nil if there was none
}

// defaultBackend serves a network that names no backend: flannel's udp, or vxlan where there is IPv6, which that does not carry.
func defaultBackend(pools []Pool) string {
	if slices.ContainsFunc(pools, func(p Pool) bool { return p.Prefix.Addr().Is6() }) {
		return "vxlan"
	}
	return "udp"
}

// ParseNetwork reads a network configuration as flannel has it below <prefix>/config, with flannel's defaults and
// rules. Keys count in any case. It also refuses what flannel lets pass and then fails on: a range that is not
// unicast, and a first subnet behind the last one. An error is one line that names the key, the value and the way to
// mend it. Whether the backend and its options exist is not judged here.
func ParseNetwork(raw []byte) (Network, error) {
	n, err := parseNetwork(raw)
	if err != nil {
		return Network{}, fmt.Errorf("network config: %w", err)
	}
	return n, nil
}

func parseNetwork(raw []byte) (Network, error) {
	c, err := parseConfig(raw)
	if err != nil {
		return Network{}, err
	}
	n := Network{Unknown: c.unknown}
	for _, keys := range poolKeys {
		enabled, err := setting(c, keys.enable, "true or false", keys.family == IPv4)
		if err != nil {
			return Network{}, err
		}
		if !enabled {
			continue
		}
		pool, err := parsePool(c, keys)
		if err != nil {
			return Network{}, err
		}
		n.Pools = append(n.Pools, pool)
	}
	if len(n.Pools) == 0 {
		return Network{}, errors.New("EnableIPv4 and EnableIPv6: both are false: set one of them to true")
	}
	// flannel's choice of firewall tool: checked so that a typo is found, otherwise of no effect.
	if _, err := setting(c, "EnableNFTables", "true or false", false); err != nil {
		return Network{}, err
	}
	n.Backend, err = parseBackend(c, n.Pools)
	return n, err
}

func parseBackend(c config, pools []Pool) (Backend, error) {
	raw, ok := c.values["Backend"]
	if !ok {
		return Backend{Type: defaultBackend(pools)}, nil
	}
	if raw[0] != '{' {
		return Backend{}, fmt.Errorf(`Backend: %s is not an object: write {"Type": "vxlan"}`, clip(raw))
	}
	var b struct{ Type json.RawMessage }
	if err := json.Unmarshal(raw, &b); err != nil {
		return Backend{}, fmt.Errorf("Backend: %w", err)
	}
	var kind string
	if len(b.Type) > 0 {
		if err := json.Unmarshal(b.Type, &kind); err != nil {
			return Backend{}, fmt.Errorf("Backend.Type: %s is not a string", clip(b.Type))
		}
	}
	if kind == "" {
		return Backend{}, errors.New(`Backend.Type: missing: name a backend, like "vxlan"`)
	}
	return Backend{Type: strings.ToLower(kind), Options: raw}, nil
}

// Pool returns the pool of family f, if the network has that family.
func (n Network) Pool(f Family) (Pool, bool) {
	for _, p := range n.Pools {
		if FamilyOf(p.Prefix.Addr()) == f {
			return p, true
		}
	}
	return Pool{}, false
}

// Contains reports whether all of p lies inside the network.
func (n Network) Contains(p netip.Prefix) bool {
	if !p.IsValid() {
		return false
	}
	pool, ok := n.Pool(FamilyOf(p.Addr()))
	return ok && p.Bits() >= pool.Prefix.Bits() && pool.Prefix.Contains(p.Addr())
}

// Admit says why no lease of the network may have the subnet p; nil if one may. A host keeps the subnet that it has when
// SubnetLen changes, so those of up to sixteen times the size are admitted, and all that are smaller. A larger one, or
// one of more than a quarter of the network, which no SubnetLen allows, would silence every newer lease in it.
func (n Network) Admit(p netip.Prefix) error {
	if !n.Contains(p) {
		return fmt.Errorf("%s lies outside the network %s", p, n)
	}
	pool, _ := n.Pool(FamilyOf(p.Addr()))
	if shortest := max(pool.SubnetLen-4, pool.Prefix.Bits()+2); p.Bits() < shortest {
		return fmt.Errorf("%s is too large for a lease of the network %s: at most a /%d is followed", p, n, shortest)
	}
	return nil
}

// String lists the network's ranges, like "10.244.0.0/16,fd00:244::/48".
func (n Network) String() string {
	ranges := make([]string, len(n.Pools))
	for i, p := range n.Pools {
		ranges[i] = p.Prefix.String()
	}
	return strings.Join(ranges, ",")
}
