package main

import (
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// routes are what is announced: subnets, and the hosts that have them.
type routes map[netip.Prefix]netip.Addr

// plan is what to announce of leases, and by key why some are not. Who took for a next hop what is in the overlay itself, or the
// router that is told, would send packets round in circles.
func plan(leases etcdstore.Listing, routers []neighbor) (routes, map[string]string) {
	announce, refused := routes{}, map[string]string{}
	for _, s := range leases.Skipped {
		refused[s.Key] = s.Err.Error()
	}
	taken := new(bart.Lite)
	for _, r := range leases.Records {
		for _, e := range r.Endpoints {
			taken.Insert(e.Subnet)
		}
	}
	for _, r := range leases.Records {
		switch {
		case r.LeaseID == 0 && r.Backend == "": // it is kept for a host that does not run
			continue
		case r.Outside():
			refused[r.Key()] = "it belongs to no host of the network, and is reached by wireguard alone"
			continue
		}
		for _, e := range r.Endpoints {
			if err := garbage(e.PublicIP, taken, routers); err != nil {
				refused[r.Key()] = err.Error()
				continue
			}
			announce[e.Subnet.Masked()] = e.PublicIP
		}
	}
	return announce, refused
}

// garbage says why a next hop is none; nil if it is one, as far as can be seen.
func garbage(hop netip.Addr, taken *bart.Lite, routers []neighbor) error {
	switch {
	case !hop.IsValid():
		return fmt.Errorf("it has no public IP of its subnet's family")
	case taken.Contains(hop):
		return fmt.Errorf("its public IP %s is in a subnet of the overlay", hop)
	}
	for _, n := range routers {
		if n.Address == hop {
			return fmt.Errorf("its public IP %s is that of a router", hop)
		}
	}
	return nil
}
