package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/underlay"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// current is what etcd holds before a change of the network.
type current struct {
	raw      []byte // nil: there is no configuration yet
	revision int64  // 0 if raw is nil
	leases   []subnet.Record
}

func (a *app) readCurrent(ctx context.Context) (c current, err error) {
	c.raw, c.revision, err = a.network(ctx)
	if errors.Is(err, etcdstore.ErrNoNetwork) {
		return current{}, nil
	}
	if err != nil {
		return current{}, err
	}
	if _, err := subnet.ParseNetwork(c.raw); err != nil {
		return c, nil // no lease counts in a network that nobody can read, and it wants replacing
	}
	listing, err := a.listing(ctx)
	c.leases = listing.Records
	return c, err
}

// refuse is the error that n would take their lease from hosts, and hint what to do about it; nil if it would not.
func (c current) refuse(n subnet.Network, hint string) error {
	var stranded []string
	for _, r := range c.leases {
		if reason := misfit(n, r.Lease); reason != "" {
			stranded = append(stranded, fmt.Sprintf("%s: %s", nameLease(r.Lease), reason))
		}
	}
	if len(stranded) == 0 {
		return nil
	}
	return fmt.Errorf("%s would not fit the network (%s):\n  %s",
		plural(len(stranded), "lease"), hint, strings.Join(bound(stranded), "\n  "))
}

// checkGround is the error that n covers what this host, or the hosts that have a lease, need to reach each other and
// etcd: they would refuse it. A range that is in force is theirs to judge.
func (a *app) checkGround(n subnet.Network, found current) error {
	if before, err := subnet.ParseNetwork(found.raw); err == nil && before.String() == n.String() {
		return nil
	}
	around, err := underlay.LookAround(netns.None())
	if err != nil {
		a.warn([]string{"the configuration was not checked against this host: " + err.Error()})
	}
	var places []backend.Place
	for _, addr := range a.etcd.Addrs() {
		places = append(places, backend.At(addr, "etcd at"))
	}
	var own []netip.Prefix
	for _, r := range found.leases {
		own = append(own, r.Subnets()...)
		for _, e := range r.Endpoints {
			if e.PublicIP.IsValid() {
				p := backend.At(e.PublicIP, "")
				p.Name = fmt.Sprintf("%s, the public IP of %s", e.PublicIP, nameLease(r.Lease))
				places = append(places, p)
			}
		}
	}
	return backend.Covers(n, backend.Places(around, places, n, own))
}

// misfit says why a host could not keep its lease in n; empty if it could. A family more is no reason: the host gets a
// subnet of it beside the one that it has.
func misfit(n subnet.Network, l subnet.Lease) string {
	kept := 0
	for _, pool := range n.Pools {
		family := subnet.FamilyOf(pool.Prefix.Addr())
		e, ok := l.Endpoint(family)
		switch p := e.Subnet; {
		case !ok:
			continue
		case !n.Contains(p):
			return fmt.Sprintf("%s is outside %s", p, pool.Prefix)
		case p.Bits() != pool.SubnetLen:
			return fmt.Sprintf("%s is not a /%d", p, pool.SubnetLen)
		case p.Addr().Less(pool.Min), pool.Max.Less(p.Addr()):
			return fmt.Sprintf("%s is not from %s to %s", p, pool.Min, pool.Max)
		}
		kept++
	}
	if kept < len(l.Endpoints) {
		return "has a subnet of a family that the network would not have"
	}
	return ""
}

// nameLease is how a lease is called in a message.
func nameLease(l subnet.Lease) string {
	name := subnet.Join(l.Subnets())
	if l.Host != "" {
		name += " of " + printable(l.Host)
	}
	return name
}

// describe is a network in one line.
func describe(n subnet.Network) string {
	ranges := make([]string, len(n.Pools))
	for i, p := range n.Pools {
		ranges[i] = fmt.Sprintf("%s in /%ds from %s to %s", p.Prefix, p.SubnetLen, p.Min, p.Max)
	}
	return fmt.Sprintf("%s; room for %s; backend %s",
		strings.Join(ranges, ", "), plural(int(n.Slots()), "host"), n.Backend.Type)
}
