package main

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/underlay"
	"github.com/overlayd/overlayd/subnet"
)

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
