package etcdstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
)

// endpoints are the addresses of etcd that are in force.
type endpoints struct {
	list    []string
	retired context.Context // ends when others are in force
	retire  context.CancelFunc
}

func newEndpoints(list []string) endpoints {
	e := endpoints{list: slices.Clone(list)}
	// Members that start together should not all burden the same one.
	rand.Shuffle(len(e.list), func(i, j int) { e.list[i], e.list[j] = e.list[j], e.list[i] })
	e.retired, e.retire = context.WithCancel(context.Background())
	return e
}

// SetEndpoints moves the Store and its Members to other endpoints of the same etcd, or changes nothing if one of them
// makes no sense. Who follows etcd goes on where it was.
func (s *Store) SetEndpoints(list []string) error {
	cfg := s.cfg
	cfg.Endpoints = list
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if equal(s.endpoints.list, cfg.Endpoints) {
		return nil
	}
	s.endpoints.retire()
	s.endpoints = newEndpoints(cfg.Endpoints)
	if s.client != nil {
		s.client.SetEndpoints(cfg.Endpoints...)
	}
	return nil
}

// equal says whether two lists hold the same, in whatever order.
func equal(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// current are the endpoints in force.
func (s *Store) current() endpoints {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endpoints
}
