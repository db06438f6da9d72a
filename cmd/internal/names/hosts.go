package names

import (
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/subnet"
)

// Own says which lease this host has.
func (x *Index) Own(own *subnet.Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.own = own
}

// Peers says which leases of peers changed, by key; nil: the peer is gone.
func (x *Index) Peers(changed map[string]*subnet.Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for key, r := range changed {
		if was := x.leases[key]; was != nil {
			for _, s := range was.Subnets() {
				x.subs.Delete(s.Masked())
			}
			x.near(was, -1)
			delete(x.leases, key)
		}
		if r != nil {
			for _, s := range r.Subnets() {
				x.subs.Insert(s.Masked())
			}
			x.near(r, 1)
			x.leases[key] = r
		}
	}
}

// Links says which subnets this host's links are in: hosts with addresses there are near.
func (x *Index) Links(links []netip.Prefix) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if slices.Equal(x.links, links) {
		return
	}
	x.links, x.nearby = slices.Clone(links), map[string]int{}
	for _, r := range x.leases {
		x.near(r, 1)
	}
	x.round++
}

// near counts, by one more or less, the leases by which a host is near.
func (x *Index) near(r *subnet.Record, by int) {
	for _, e := range r.Endpoints {
		if slices.ContainsFunc(x.links, func(p netip.Prefix) bool { return p.Contains(e.PublicIP) }) {
			if x.nearby[r.HostID] += by; x.nearby[r.HostID] == 0 {
				delete(x.nearby, r.HostID)
			}
			x.round++
			return
		}
	}
}
