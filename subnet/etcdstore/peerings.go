package etcdstore

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// PeeredDir is where, below <prefix>/overlayd/, the peerings stand, each as A,B.
const PeeredDir = "peered/"

// Peering says that two networks reach each other, on hosts that are in both. As keys have them, A comes before B; the network
// that has no name is "" here, and "default" there.
type Peering struct{ A, B string }

// NewPeering is the peering of two networks. "" and "default" are both the one that has no name.
func NewPeering(a, b string) (Peering, error) {
	names := [2]string{written(a), written(b)}
	for _, name := range names {
		if name == subnet.DefaultNetwork {
			continue
		}
		if err := subnet.ValidNetworkName(name); err != nil {
			return Peering{}, err
		}
	}
	switch strings.Compare(names[0], names[1]) {
	case 0:
		return Peering{}, fmt.Errorf("network %s is one with itself already: name two networks", names[0])
	case 1:
		names[0], names[1] = names[1], names[0]
	}
	return Peering{unwritten(names[0]), unwritten(names[1])}, nil
}

// written is how people and keys call a network.
func written(name string) string {
	if name == "" {
		return subnet.DefaultNetwork
	}
	return name
}

func unwritten(name string) string {
	if name == subnet.DefaultNetwork {
		return ""
	}
	return name
}

// ParsePeering reads the name of a key below [PeeredDir]. It takes nothing but what [Peering.String] writes.
func ParsePeering(key string) (Peering, error) {
	a, b, _ := strings.Cut(key, ",")
	p, err := NewPeering(a, b)
	if err == nil && p.String() != key {
		err = fmt.Errorf("it would be %s", p)
	}
	if err != nil {
		return Peering{}, fmt.Errorf("peering %.40q: %w", key, err)
	}
	return p, nil
}

// String is the peering as its key has it.
func (p Peering) String() string { return written(p.A) + "," + written(p.B) }

// Has says whether a network is one of the two.
func (p Peering) Has(name string) bool { return p.A == name || p.B == name }

func (s *Store) peeredKey(p Peering) string { return s.prefix + "/overlayd/" + PeeredDir + p.String() }

// Peerings lists the peerings, by key. What is none is not among them.
func (s *Store) Peerings(ctx context.Context) (all []Peering, err error) {
	found, err := s.Documents(ctx, strings.TrimSuffix(PeeredDir, "/"))
	for _, d := range found {
		if p, err := ParsePeering(d.Name); err == nil {
			all = append(all, p)
		}
	}
	return all, err
}

// Peer has two networks reach each other. If one of them is not there the error wraps [ErrConflict].
func (s *Store) Peer(ctx context.Context, p Peering) error {
	var there []clientv3.Cmp
	for _, name := range []string{p.A, p.B} {
		there = append(there, clientv3.Compare(clientv3.CreateRevision(s.configOf(name)), ">", 0))
	}
	return s.commit(ctx, s.peeredKey(p), there, clientv3.OpPut(s.peeredKey(p), "{}"))
}

// Unpeer ends a peering; that there is none is no error.
func (s *Store) Unpeer(ctx context.Context, p Peering) error {
	return s.DeleteDocument(ctx, strings.TrimSuffix(PeeredDir, "/"), p.String())
}
