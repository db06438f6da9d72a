package etcdstore

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// reserveTries is how often a reservation is tried while others change what it depends on.
const reserveTries = 5

// Reserve writes a lease that does not expire, for the host of its HostID or, without that, of its addresses, or for a peer
// outside the network. Of a lease that this host has there already it makes such a one. The error wraps ErrTaken if another lease has an address
// of the subnets, and ErrNoNetwork if there is no network yet.
func (s *Store) Reserve(ctx context.Context, l subnet.Lease) (err error) {
	for range reserveTries {
		if err = s.reserve(ctx, l); !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return err
}

func (s *Store) reserve(ctx context.Context, l subnet.Lease) error {
	value, err := l.Value()
	if err != nil {
		return err
	}
	there, err := s.read(ctx)
	if err != nil {
		return err
	}
	if !there.network.Fits(l.Subnets()) {
		return fmt.Errorf("%s is no subnet that the network %s leases", l.Key(), there.network)
	}
	have, ok := there.set.Get(l.Key())
	if !ok {
		have = new(subnet.Record)
	}
	if holder, overlaps := there.set.Overlaps(l.Subnets()); overlaps && (!ok || l.Outside() || !reservedFor(have.Lease, l)) {
		return fmt.Errorf("%s: %w by %s", l.Key(), ErrTaken, holder)
	}
	key := s.leasePrefix() + l.Key()
	if ok { // the host's own value says more than a reservation: where the host is
		if value, err = have.Value(); err != nil {
			return err
		}
	}
	same := []clientv3.Cmp{unchanged(key, have.ModRevision), unchanged(s.configKey(), there.configRevision)}
	if err := s.commit(ctx, key, same, clientv3.OpPut(key, string(value))); err != nil || ok {
		return err
	}
	return s.confirm(ctx, l)
}

// confirm takes a reservation back if somebody claimed an address of it under another key meanwhile.
func (s *Store) confirm(ctx context.Context, l subnet.Lease) error {
	there, err := s.read(ctx)
	if err != nil {
		return fmt.Errorf("%s is reserved, but may overlap another lease: %w", l.Key(), err)
	}
	elder, overlaps := there.set.Elder(l.Key())
	if !overlaps {
		return nil
	}
	if r, _ := there.set.Find(l.Key()); r != nil {
		err = s.Release(ctx, *r)
	}
	return errors.Join(fmt.Errorf("%s: %w by %s", l.Key(), ErrTaken, elder), err)
}

// reservedFor says whether a lease is that of the host for which another is to be reserved.
func reservedFor(have, want subnet.Lease) bool {
	if want.HostID != "" {
		return have.HostID == want.HostID
	}
	return sharesAddress(have, want)
}

// Release deletes a lease that is still as it was read; otherwise the error wraps ErrConflict.
func (s *Store) Release(ctx context.Context, r subnet.Record) error {
	key := s.leasePrefix() + r.Key()
	return s.commit(ctx, key, []clientv3.Cmp{unchanged(key, r.ModRevision)}, clientv3.OpDelete(key))
}
