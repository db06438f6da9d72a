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
	wrote    int64          // revision of what this process wrote last; 0: nothing
	expires  time.Time      // when leaseID ends
	lastHeld subnet.Record
	state    State
	reason   string
}

// ownValue is what etcd holds at the own key.
type ownValue struct {
	subnet.KeyValue
	lease subnet.Lease // what Value says
	err   error        // why it is no lease
	exact bool         // Value is byte for byte what we would write for lease
}

func newOwnValue(kv subnet.KeyValue) *ownValue {
	v := &ownValue{KeyValue: kv}
	if v.lease, v.err = subnet.ParseLease(kv.Key, kv.Value); v.err == nil {
		value, err := v.lease.Value()
		v.exact = err == nil && bytes.Equal(value, kv.Value)
	}
	return v
}

// says reports whether the key holds what we would write for l.
func (v *ownValue) says(l subnet.Lease) bool { return v != nil && v.exact && v.lease.Equal(l) }

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

// owner says whose the value at the own key is, and what it says.
func (o own) owner(wish subnet.Lease) (owner, subnet.Lease) {
	if o.value == nil {
		return nobody, subnet.Lease{}
	}
	if o.value.err != nil {
		return junk, subnet.Lease{}
	}
	return ownerOf(o.value.lease, wish), o.value.lease
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

// observe takes in what the watch says of the own key. It returns false if that is older than what is known.
func (o *own) observe(kv *mvccpb.KeyValue, gone bool) bool {
	switch {
	case kv.ModRevision < o.modRevision():
		return false
	case gone:
		o.value = nil
	default:
		o.value = newOwnValue(keyValue(o.key, kv))
	}
	return true
}

func (o *own) modRevision() int64 {
	if o.value == nil {
		return 0
	}
	return o.value.ModRevision
}
