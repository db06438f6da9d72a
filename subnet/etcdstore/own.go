package etcdstore

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/overlayd/overlayd/subnet"
)

// own is the host's own lease.
type own struct {
	key      string         // without the prefix; empty: none is chosen
	subnets  []netip.Prefix // that the key names
	had      bool           // the host has held the key: it does not choose another by itself
	value    *ownValue      // in etcd; nil: none
	leaseID  int64          // of etcd's lease that holds the key, or is to; 0: to be granted
	granted  bool           // leaseID was granted to this process, for the TTL that it wants
	deadID   int64          // an etcd lease that has ended
	expires  time.Time      // when leaseID ends
	lastHeld subnet.Record
	state    State
	reason   string
}

// ownValue is what etcd holds at the own key.
type ownValue struct {
	bytes          []byte
	createRevision int64
	modRevision    int64
	leaseID        int64
}

// report is what the host hears of it.
func (o own) report(twins map[string]string) Own {
	r := Own{State: o.state, Record: o.lastHeld, Reason: o.reason}
	if o.state == Held && o.lastHeld.LeaseID != 0 {
		r.Expires = o.expires
	}
	if r.Reason == "" {
		for _, text := range twins {
			r.Reason = max(r.Reason, text) // any one, but always the same
		}
	}
	return r
}

// owner says whose the value at a key is.
type owner uint8

const (
	nobody owner = iota // no value
	junk                // a value that is no lease
	ours
	theirs
)

// ownerOf says whose a lease is. Without a HostID it is flannel's, and flannel knows hosts by their address alone:
// if that is ours, flannel ran on this host. A lease with our address and the HostID of another host is the other's,
// be it that host's mistake or ours.
func ownerOf(l, wish subnet.Lease) owner {
	switch {
	case l.HostID == wish.HostID:
		return ours
	case l.HostID == "" && sharesAddress(l, wish):
		return ours
	}
	return theirs
}

// sameAddresses reports whether two leases name the same underlay addresses.
func sameAddresses(a, b subnet.Lease) bool {
	return slices.EqualFunc(a.Endpoints, b.Endpoints, func(x, y subnet.Endpoint) bool { return x.PublicIP == y.PublicIP })
}

// sharesAddress reports whether two leases name one underlay address.
func sharesAddress(a, b subnet.Lease) bool {
	for _, x := range a.Endpoints {
		for _, y := range b.Endpoints {
			if x.PublicIP.IsValid() && x.PublicIP == y.PublicIP {
				return true
			}
		}
	}
	return false
}

// leaseFor is what the host's lease of these subnets is to say.
func leaseFor(wish subnet.Lease, subnets []netip.Prefix) subnet.Lease {
	l := wish
	l.Endpoints = make([]subnet.Endpoint, len(subnets))
	for i, p := range subnets {
		for _, e := range wish.Endpoints {
			a := e.PublicIP
			if !a.IsValid() {
				a = e.Subnet.Addr()
			}
			if a.IsValid() && a.Is4() == p.Addr().Is4() {
				l.Endpoints[i] = e
			}
		}
		l.Endpoints[i].Subnet = p
	}
	return l
}

// choice is what a host can choose a subnet from.
type choice struct {
	wish     subnet.Lease
	network  subnet.Network
	set      *subnet.Set
	previous []netip.Prefix
	taken    func([]netip.Prefix) bool // beyond those in set
}

// choose returns the subnets that the host should claim: a reservation for it, else a lease that it has, else the one
// it had before if it is free, else a free one. The error wraps subnet.ErrOutOfSubnets.
func (c choice) choose() ([]netip.Prefix, error) {
	var best subnet.Record
	rank := 0
	for _, r := range c.set.All() {
		if ownerOf(r.Lease, c.wish) != ours || !c.network.Fits(r.Subnets()) {
			continue
		}
		if n := c.rank(r); n > rank || n == rank && r.CreateRevision < best.CreateRevision {
			best, rank = r, n
		}
	}
	if rank > 0 {
		return best.Subnets(), nil
	}
	taken := func(p []netip.Prefix) bool {
		_, overlaps := c.set.Overlaps(p)
		return overlaps || c.taken(p)
	}
	if c.network.Fits(c.previous) && !taken(c.previous) {
		return c.previous, nil
	}
	return c.network.Allocate(c.wish.HostID, taken)
}

// rank orders the leases that are the host's own: the higher the better.
func (c choice) rank(r subnet.Record) int {
	switch {
	case r.LeaseID == 0:
		return 4
	case r.HostID == c.wish.HostID && r.Key() == keyOf(c.previous):
		return 3
	case r.HostID == c.wish.HostID:
		return 2
	}
	return 1
}

func keyOf(subnets []netip.Prefix) string {
	l := subnet.Lease{Endpoints: make([]subnet.Endpoint, len(subnets))}
	for i, p := range subnets {
		l.Endpoints[i].Subnet = p
	}
	return l.Key()
}

// verdict is what to do about the own key.
type verdict struct {
	state  State
	reason string
	write  *write // nil: nothing
}

// write is a change of the own key.
type write struct {
	lease       subnet.Lease
	value       []byte // of lease
	modRevision int64  // that the key must have; 0: there must be none
	leaseID     int64  // of etcd's lease to hold it; 0: none
	grant       bool   // hold it by a new one instead
}

// judge says what the own key in etcd calls for. rejection is why the lease there does not count: an older one has
// an address of it, or it is outside the network.
//
// Junk and flannel's values with our own address are written over: nobody else claims the subnet with them, while
// peers cannot reach us until our value is back. Values of other hosts are not: two hosts with one subnet is worse
// than one host without.
func (o own) judge(wish subnet.Lease, network subnet.Network, rejection error) verdict {
	w := write{lease: leaseFor(wish, o.subnets), leaseID: o.leaseID, grant: o.leaseID == 0}
	var err error
	if w.value, err = w.lease.Value(); err != nil {
		return verdict{state: o.pending(), reason: err.Error()}
	}
	there, l := o.owner(wish)
	fits := network.Fits(o.subnets)
	switch {
	case there == nobody && !fits:
		return verdict{state: Taken, reason: fmt.Sprintf("the lease of %s is lost, and the network does not lease this subnet any more", o.key)}
	case there == nobody:
		return verdict{state: Claiming, write: &w}
	case there == theirs:
		return verdict{state: Taken, reason: fmt.Sprintf("subnet %s belongs to %s now", o.key, nameOf(l))}
	case there == ours && rejection != nil && fits:
		return verdict{state: Taken, reason: rejection.Error()}
	case there == ours && o.value.leaseID == 0:
		w.leaseID, w.grant = 0, false // a reservation stays one
	case there == ours && w.grant && l.HostID == wish.HostID && o.value.leaseID != o.deadID:
		w.leaseID, w.grant = o.value.leaseID, false // as an earlier run of ours left it
	}
	w.modRevision = o.value.modRevision
	if !bytes.Equal(w.value, o.value.bytes) || w.grant || w.leaseID != o.value.leaseID {
		return verdict{state: o.pending(), write: &w}
	}
	if !fits {
		return verdict{state: Held, reason: fmt.Sprintf("the network does not lease subnet %s any more", o.key)}
	}
	return verdict{state: Held}
}

// pending is the state while a write is on its way that changes a lease but not whose it is.
func (o own) pending() State {
	if o.had {
		return Held
	}
	return Claiming
}

// owner says whose the value at the own key is, and what it says.
func (o own) owner(wish subnet.Lease) (owner, subnet.Lease) {
	if o.value == nil {
		return nobody, subnet.Lease{}
	}
	l, err := subnet.ParseLease(o.key, o.value.bytes)
	if err != nil {
		return junk, subnet.Lease{}
	}
	return ownerOf(l, wish), l
}

// nameOf is what an operator calls a lease's host.
func nameOf(l subnet.Lease) string {
	name := "a flannel host"
	if l.HostID != "" {
		name = fmt.Sprintf("host %q (%s)", l.Host, l.HostID)
	}
	for _, e := range l.Endpoints {
		if e.PublicIP.IsValid() {
			name += " at " + e.PublicIP.String()
		}
	}
	return name
}

// loseLease takes note that the etcd lease is of no use any more.
func (o *own) loseLease() {
	o.deadID, o.leaseID, o.granted = o.leaseID, 0, false
}

func newOwnValue(kv *mvccpb.KeyValue) *ownValue {
	return &ownValue{kv.Value, kv.CreateRevision, kv.ModRevision, kv.Lease}
}

// observe takes in what the watch says of the own key. It returns false if that is older than what is known.
func (o *own) observe(kv *mvccpb.KeyValue, gone bool) bool {
	switch {
	case kv.ModRevision < o.modRevision():
		return false
	case gone:
		o.value = nil
	default:
		o.value = newOwnValue(kv)
	}
	return true
}

func (o *own) modRevision() int64 {
	if o.value == nil {
		return 0
	}
	return o.value.modRevision
}
