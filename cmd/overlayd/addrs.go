package main

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/settings"
)

const (
	// resolveEvery is how often the names of etcd's endpoints are looked up again.
	resolveEvery = time.Minute
	// resolveWithin is how long the first lookup is waited for: who follows etcd has resolved its name.
	resolveWithin = time.Second
)

// etcdAddrs knows the addresses of etcd's endpoints.
type etcdAddrs struct {
	first chan struct{} // closed when all names were looked up once
	again chan struct{} // capacity 1: the endpoints are others

	mu        sync.Mutex
	endpoints []string
	addrs     []netip.Addr
}

func newEtcdAddrs(endpoints []string) *etcdAddrs {
	return &etcdAddrs{endpoints: endpoints, first: make(chan struct{}), again: make(chan struct{}, 1)}
}

// set changes the endpoints.
func (e *etcdAddrs) set(endpoints []string) {
	e.mu.Lock()
	e.endpoints = endpoints
	e.mu.Unlock()
	select {
	case e.again <- struct{}{}:
	default:
	}
}

// all returns the addresses as they were last resolved.
func (e *etcdAddrs) all() []netip.Addr {
	select {
	case <-e.first:
	case <-time.After(resolveWithin):
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.addrs
}

// run resolves until ctx ends.
func (e *etcdAddrs) run(ctx context.Context) error {
	done := sync.OnceFunc(func() { close(e.first) })
	for {
		e.mu.Lock()
		endpoints := e.endpoints
		e.mu.Unlock()
		addrs, err := settings.Addrs(ctx, endpoints)
		e.mu.Lock()
		if err == nil || len(e.addrs) == 0 { // a name that is not found now is where it was
			e.addrs = addrs
		}
		e.mu.Unlock()
		done()
		select {
		case <-ctx.Done():
			return nil
		case <-e.again:
		case <-time.After(resolveEvery):
		}
	}
}
