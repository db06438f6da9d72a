package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// mostOps are written in a transaction: etcd takes 128, as it is configured by default, of which the gate before an embedded
	// one needs as many for itself, and one, to compare the keys.
	mostOps = 60
	// mostBytes of them leaves room below etcd's limit for a request, 1.5 MiB.
	mostBytes = 1 << 20
	// ownTTL is of the lease for the endpoints of a host whose subnet is reserved, and so has none: a daemon that is away for
	// longer takes them with it, and an earlier run's stay so long.
	ownTTL = 5 * time.Minute
	// leaseDelay is before a host's new lease is tried again that etcd does not know: the host is about to get another.
	leaseDelay = time.Second
)

// EndpointWriter keeps in etcd what a host says of its endpoints, on the etcd lease of the host's subnet, so that the one goes
// with the other: what changes together in one transaction, what fails again, and what an earlier run left on the lease is deleted.
type EndpointWriter struct {
	store   *Store
	wake    chan struct{}
	changed chan struct{}

	mu    sync.Mutex
	want  map[string]string // value by key, below endpoints/; never changed, only replaced
	lease int64             // etcd's; 0: the subnet is reserved
	told  bool              // what is wanted
	have  map[string]string // the same, as etcd has it
	err   error

	// Below belongs to Run.
	on    int64 // the lease that have is on; 0: not known
	own   int64 // a lease of the writer's own; 0: none
	renew time.Time
}

// EndpointWriter returns one that writes nothing until Run.
func (s *Store) EndpointWriter() *EndpointWriter {
	return &EndpointWriter{store: s, wake: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
}

// Set says what the host's endpoints are, by their keys below endpoints/, and which of etcd's leases the host's subnet has; 0: it
// is reserved. The map is not to be changed after that.
func (w *EndpointWriter) Set(lease int64, want map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told && w.lease == lease && maps.Equal(w.want, want) {
		return
	}
	w.lease, w.want, w.told = lease, want, true
	signal(w.wake)
}

// Status tells which keys etcd has, a map that is not to be changed, and why it has not what it should; nil: it has.
func (w *EndpointWriter) Status() (have map[string]string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.have, w.err
}

// Changed receives after Status changed.
func (w *EndpointWriter) Changed() <-chan struct{} { return w.changed }

// Run writes until ctx ends; then it returns nil, and what is written stays as long as the lease.
func (w *EndpointWriter) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var wait backoff
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		case <-timer.C:
		}
		err := w.bring(ctx)
		next := time.Hour
		switch {
		case err == nil:
			wait = 0
			if w.own != 0 {
				next = time.Until(w.renew)
			}
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			w.on, w.own, next = 0, 0, leaseDelay
		default:
			next = wait.next(minBackoff, maxDenied)
		}
		timer.Reset(max(next, 0))
		w.mu.Lock()
		w.err = err
		w.mu.Unlock()
		signal(w.changed)
	}
}

// bring makes etcd have what is wanted.
func (w *EndpointWriter) bring(ctx context.Context) error {
	w.mu.Lock()
	want, lease, have, told := w.want, w.lease, w.have, w.told
	w.mu.Unlock()
	if !told {
		return nil
	}
	if lease == 0 {
		if len(want)+len(have) == 0 {
			return nil
		}
		var err error
		if lease, err = w.keepOwn(ctx); err != nil {
			return err
		}
	}
	if w.on != lease {
		left, err := w.store.endpointsOn(ctx, lease)
		if err != nil {
			return err
		}
		for key := range have {
			left[key] = "" // on another lease now
		}
		have, w.on = left, lease
	}
	have = maps.Clone(have)
	if have == nil {
		have = map[string]string{}
	}
	for _, ops := range batches(have, want) {
		err := w.store.writeEndpoints(ctx, lease, ops)
		if err != nil {
			w.on = 0 // some of it may be done
			return err
		}
		for key, value := range ops {
			if have[key] = value; value == "" {
				delete(have, key)
			}
		}
		w.mu.Lock()
		w.have = maps.Clone(have)
		w.mu.Unlock()
	}
	return nil
}

// batches are what has to be put, and with an empty value deleted, each for one transaction. What goes comes first.
func batches(have, want map[string]string) (all []map[string]string) {
	var current map[string]string
	size := 0
	add := func(key, value string) {
		if current == nil || len(current) == mostOps || size+len(value) > mostBytes {
			current, size = map[string]string{}, 0
			all = append(all, current)
		}
		current[key] = value
		size += len(key) + len(value)
	}
	for key := range have {
		if _, ok := want[key]; !ok {
			add(key, "")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if want[key] != have[key] {
			add(key, want[key])
		}
	}
	return all
}

// keepOwn returns a lease of the writer's own, granted or renewed as need be.
func (w *EndpointWriter) keepOwn(ctx context.Context) (int64, error) {
	if w.own != 0 && time.Until(w.renew) > 0 {
		return w.own, nil
	}
	err := w.store.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		if w.own != 0 {
			_, err := keepAliveOnce(ctx, c, w.own)
			return err
		}
		got, err := c.Grant(ctx, int64(ownTTL/time.Second))
		if err == nil {
			w.own = int64(got.ID)
		}
		return err
	})
	if err == nil {
		w.renew = time.Now().Add(ownTTL / 3)
	}
	return w.own, err
}

func (s *Store) endpointPrefix() string { return s.documentKey("endpoints", "") }

// endpointsOn are the keys of endpoints on one of etcd's leases, with no values.
func (s *Store) endpointsOn(ctx context.Context, lease int64) (keys map[string]string, err error) {
	keys = map[string]string{}
	err = s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.TimeToLive(ctx, clientv3.LeaseID(lease), clientv3.WithAttachedKeys())
		if err != nil {
			return describe(err, c.Endpoints()...)
		}
		if got.TTL <= 0 {
			return rpctypes.ErrLeaseNotFound
		}
		for _, key := range got.Keys {
			if name, ok := strings.CutPrefix(string(key), s.endpointPrefix()); ok {
				keys[name] = ""
			}
		}
		return nil
	})
	return keys, err
}

func (s *Store) writeEndpoints(ctx context.Context, lease int64, values map[string]string) error {
	var ops []clientv3.Op
	for key, value := range values {
		if value == "" {
			ops = append(ops, clientv3.OpDelete(s.endpointPrefix()+key))
		} else {
			ops = append(ops, clientv3.OpPut(s.endpointPrefix()+key, value, clientv3.WithLease(clientv3.LeaseID(lease))))
		}
	}
	if err := s.commit(ctx, "endpoints", nil, ops...); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	return nil
}

// DeleteEndpoints deletes what a host wrote on one of etcd's leases.
func (s *Store) DeleteEndpoints(ctx context.Context, lease int64) error {
	keys, err := s.endpointsOn(ctx, lease)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	for _, ops := range batches(keys, nil) {
		err = errors.Join(err, s.writeEndpoints(ctx, lease, ops))
	}
	return err
}
