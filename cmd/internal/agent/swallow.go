package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// ground is what the overlay stands on: what packets between the hosts and etcd pass by. It keeps of all that only what
// the networks that are spoken of could cover, which as a rule is nothing.
type ground struct {
	around  kernel.Around
	addrs   []backend.Place // the host's own
	etcd    []netip.Addr
	places  []backend.Place       // what a peer's subnet must not cover
	ranges  []netip.Prefix        // of the network in force, and of etcd's
	publics *bart.Table[[]string] // the public IPs within ranges, with the keys of their leases
	moved   []netip.Addr          // the publics that came or went and that nobody has looked at yet
	denied  []byte                // the config that is not followed; nil: none
}

// refusal is the error that something would cover the ground, or is not what the host's operator allows.
type refusal struct{ error }

// stand takes note of the host as it was just looked at.
func (a *Agent) stand(h Host) {
	a.ground.around, a.ground.addrs, a.ground.etcd = h.Around, nil, nil
	for f, addr := range h.Addrs {
		a.ground.addrs = append(a.ground.addrs, backend.At(addr, "this host's address"))
		if public := h.PublicIPs[f]; public != addr {
			a.ground.addrs = append(a.ground.addrs, backend.At(public, "this host's public IP"))
		}
	}
	if a.cfg.EtcdAddrs != nil {
		a.ground.etcd = a.cfg.EtcdAddrs()
	}
}

// etcdMoved says whether etcd is at other addresses than when the host was looked at.
func (a *Agent) etcdMoved() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg.EtcdAddrs != nil && !slices.Equal(a.ground.etcd, a.cfg.EtcdAddrs())
}

// mustNotCover is what the network n must not.
func (a *Agent) mustNotCover(n subnet.Network) []backend.Place {
	addrs := slices.Clone(a.ground.addrs)
	for _, addr := range a.ground.etcd {
		addrs = append(addrs, backend.At(addr, "etcd at"))
	}
	own := slices.Clone(a.former)
	for _, r := range []*subnet.Record{a.own, a.cfg.Last.Last} {
		if r != nil {
			own = append(own, r.Subnets()...)
		}
	}
	return backend.Places(a.ground.around, addrs, n, own)
}

// survey takes note of what the subnets of peers must not cover, and says whether that is something else than before.
func (a *Agent) survey() (changed bool) {
	places := slices.DeleteFunc(a.mustNotCover(*a.network), func(p backend.Place) bool {
		return !slices.ContainsFunc(a.ground.ranges, p.Prefix.Overlaps)
	})
	changed = !slices.Equal(places, a.ground.places)
	a.ground.places = places
	return changed
}

// review says what is wrong with the network in force, which stays so: to end it would cut off containers.
func (a *Agent) review() {
	err := a.pinned(*a.network)
	if err == nil {
		err = backend.Covers(*a.network, a.mustNotCover(*a.network))
	}
	if err != nil {
		a.complain(problemNetwork, err.Error())
		return
	}
	a.settle(problemNetwork)
}

// ranges are those of a network; of nil there are none.
func ranges(n *subnet.Network) (all []netip.Prefix) {
	if n == nil {
		return nil
	}
	for _, pool := range n.Pools {
		all = append(all, pool.Prefix)
	}
	return all
}

// pinned is the error that n has other ranges than the operator of this host allows.
func (a *Agent) pinned(n subnet.Network) error {
	if a.cfg.Pin == nil || slices.Equal(ranges(&n), ranges(a.cfg.Pin)) {
		return nil
	}
	return fmt.Errorf("etcd's network %s is not the one that network: pins (%s)", n, a.cfg.Pin)
}

// refuse is the error that the host does not follow n whatever its backend can do. What the host has had already is not
// refused.
func (a *Agent) refuseNetwork(n subnet.Network) error {
	before := a.network
	if last, err := subnet.ParseNetwork(a.cfg.Last.Config); before == nil && err == nil {
		before = &last
	}
	if before != nil && slices.Equal(ranges(before), ranges(&n)) {
		return nil
	}
	err := a.pinned(n)
	if err == nil {
		err = backend.Covers(n, a.mustNotCover(n))
	}
	if err == nil {
		err = a.coversHosts(n, before == nil)
	}
	if err != nil {
		return refusal{err}
	}
	return nil
}

// coversHosts is the error that n covers the public IP of a host. Where there is no other network to stay with, it must be
// those of most hosts: else the lease that says so is the one that lies.
func (a *Agent) coversHosts(n subnet.Network, only bool) error {
	var name string
	count := 0
	for _, pool := range n.Pools {
		for p, keys := range a.ground.publics.Subnets(pool.Prefix) {
			if count += len(keys); name == "" {
				name = fmt.Sprintf("the network %s covers %s, the public IP of %s: use another range", pool.Prefix, p.Addr(), hostName(a.peers[keys[0]]))
			}
			if !only {
				break
			}
		}
	}
	if count == 0 || only && 2*count <= len(a.peers) {
		return nil
	}
	return fmt.Errorf("%s", name)
}

// hostName is how a host is called in a message.
func hostName(r *subnet.Record) string {
	name := "a host"
	if r.Host != "" {
		name = fmt.Sprintf("host %q", r.Host)
	}
	if r.HostID != "" {
		name += fmt.Sprintf(" (%s)", r.HostID)
	}
	return name
}

// older says whether a's lease counts more than b's where only one of them can.
func older(a, b *subnet.Record) bool {
	if a.CreateRevision != b.CreateRevision {
		return a.CreateRevision < b.CreateRevision
	}
	return a.Key() < b.Key()
}

// swallows is the error that a peer's subnet covers the ground.
func (a *Agent) swallows(r *subnet.Record) error {
	for _, e := range r.Endpoints {
		for _, p := range a.ground.places {
			// Where the network itself lies within what is on a link, which the host says, each peer does.
			if e.Subnet.Overlaps(p.Prefix) && (e.Subnet.Bits() <= p.Prefix.Bits() || !slices.ContainsFunc(ranges(a.network), p.Prefix.Overlaps)) {
				return refusal{fmt.Errorf("%s covers %s, which is to be reached without it", e.Subnet, p.Name)}
			}
		}
		if a.ground.publics == nil || a.ground.publics.Size() == 0 {
			continue
		}
		for p, keys := range a.ground.publics.Subnets(e.Subnet) {
			for _, key := range keys {
				if other := a.peers[key]; other != r && older(other, r) {
					return refusal{fmt.Errorf("%s covers %s, the public IP of %s, whose lease is older", e.Subnet, p.Addr(), hostName(other))}
				}
			}
		}
	}
	return nil
}

// watchRanges has the public IPs within the ranges of both networks known.
func (a *Agent) watchRanges(networks ...*subnet.Network) {
	var all []netip.Prefix
	for _, n := range networks {
		for _, r := range ranges(n) {
			if !slices.Contains(all, r) {
				all = append(all, r)
			}
		}
	}
	if a.ground.publics != nil && slices.Equal(all, a.ground.ranges) {
		return
	}
	a.ground.ranges, a.ground.publics = all, new(bart.Table[[]string])
	for key, r := range a.peers {
		a.ground.place(key, nil, r)
	}
	a.ground.moved = nil // what is planned next is planned with all of them
}

// replace forgets what a peer claimed, and notes what it says of itself now.
func (a *Agent) replace(key string, now *subnet.Record) {
	before := a.peers[key]
	a.unclaim(key, before)
	a.ground.place(key, before, now)
}

// place takes note that a lease says something else; nil: it is not there.
func (g *ground) place(key string, before, now *subnet.Record) {
	for _, r := range []*subnet.Record{before, now} {
		if r == nil {
			continue
		}
		for _, e := range r.Endpoints {
			if !slices.ContainsFunc(g.ranges, func(p netip.Prefix) bool { return p.Contains(e.PublicIP) }) {
				continue
			}
			g.moved = append(g.moved, e.PublicIP)
			at := netip.PrefixFrom(e.PublicIP, e.PublicIP.BitLen())
			g.publics.Modify(at, func(keys []string, _ bool) ([]string, bool) {
				keys = slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return k == key })
				if r == now {
					keys = append(keys, key)
					slices.Sort(keys)
				}
				return keys, len(keys) == 0
			})
		}
	}
}

// covering adds the peers whose subnets have an address that came or went as the public IP of another. That is no honest
// host's, so that it may cost a look at all of them.
func (a *Agent) covering(keys []string) []string {
	if len(a.ground.moved) == 0 {
		return keys
	}
	for key, r := range a.peers {
		for _, e := range r.Endpoints {
			if slices.ContainsFunc(a.ground.moved, e.Subnet.Contains) {
				keys = append(keys, key)
			}
		}
	}
	a.ground.moved, a.ground.denied = nil, nil
	slices.Sort(keys)
	return slices.Compact(keys)
}

// recheck plans those peers again that the ground, as it is now, forbids or allows.
func (a *Agent) recheck() {
	var keys []string
	for key, r := range a.peers {
		_, was := a.errs[key].(refusal)
		if is := !reservation(*r) && a.swallows(r) != nil; is != was {
			keys = append(keys, key)
		}
	}
	if len(keys) > 0 {
		a.cfg.Kernel.Update(a.planPeers(keys))
	}
}

// reconsider looks again at a config that was not followed, now that what is around the host has changed.
func (a *Agent) reconsider() error {
	if a.ground.denied == nil {
		return nil
	}
	a.ground.denied = nil
	if err := a.adopt(a.latest); err != nil {
		return err
	}
	a.advance(false, nil)
	return nil
}
