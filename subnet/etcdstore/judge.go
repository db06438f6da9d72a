package etcdstore

import (
	"fmt"

	"github.com/overlayd/overlayd/subnet"
)

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

// judge says what the own key in etcd calls for. rejection is why the lease there does not count, or would not if it
// were there: an older one has an address of it, or it is outside the network.
//
// Junk and flannel's values with our own address are written over: nobody else claims the subnet with them, while
// peers cannot reach us until our value is back. Values of other hosts are not: two hosts with one subnet is worse
// than one host without.
func (o own) judge(wish subnet.Lease, network subnet.Network, rejection error) verdict {
	w := write{lease: leaseFor(wish, o.subnets), leaseID: o.leaseID, grant: o.leaseID == 0}
	right := o.value.says(w.lease)
	if right { // and nothing is put together for the events of others
		w.value = o.value.Value
	} else {
		var err error
		if w.value, err = w.lease.Value(); err != nil {
			return verdict{state: o.pending(), reason: err.Error()}
		}
	}
	there, l := o.owner(wish)
	fits := network.Fits(o.subnets)
	switch {
	case there == nobody && !fits:
		return verdict{state: Taken, reason: fmt.Sprintf("the lease of %s is lost, and the network does not lease this subnet any more", o.key)}
	case there == nobody && rejection != nil:
		return verdict{state: Taken, reason: rejection.Error()}
	case there == nobody:
		return verdict{state: Claiming, write: &w}
	case there == theirs:
		return verdict{state: Taken, reason: fmt.Sprintf("subnet %s belongs to %s now", o.key, nameOf(l))}
	case there == ours && rejection != nil && fits:
		return verdict{state: Taken, reason: rejection.Error()}
	case there == ours && o.value.LeaseID == 0:
		w.leaseID, w.grant = 0, false // a reservation stays one
	case there == ours && w.grant && l.HostID == wish.HostID && o.value.LeaseID != o.deadID:
		w.leaseID, w.grant = o.value.LeaseID, false // as an earlier run of ours left it
	}
	w.modRevision = o.value.ModRevision
	if !right || w.grant || w.leaseID != o.value.LeaseID {
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
