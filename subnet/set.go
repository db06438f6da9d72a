package subnet

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// Set holds all keys below <prefix>/subnets/ and says which of them count as leases of the network: those that are
// well-formed, lie inside the network and overlap, in no family, another such key that is older. Of two keys the one
// with the lower CreateRevision is older, and of two from one transaction the one that sorts first. What it answers
// depends on what it holds, not on the order in which that came. A change costs a few lookups, whatever the size of
// the set, but for a key that covers many others, which costs a look at each.
//
// Everything that reads and writes returns keys in a fixed order. A Set must not be used by two goroutines at once,
// nor be changed inside a loop over it.
type Set struct {
	network Network
	entries map[string]*entry
	counted int // entries that count
	// The entries of well-formed keys by their subnets, whether they count or not. A dual-stack key is there twice,
	// and keys that share one subnet share a slice, sorted by compare; none is empty.
	subnets *bart.Table[[]*entry]
}

// NewSet returns an empty set for the network.
func NewSet(n Network) *Set {
	return &Set{network: n, entries: make(map[string]*entry), subnets: new(bart.Table[[]*entry])}
}

// KeyValue is a key below <prefix>/subnets/, without that, as etcd holds it.
type KeyValue struct {
	Key            string
	Value          []byte
	CreateRevision int64
	ModRevision    int64
	LeaseID        int64
}

// Put adds a key or replaces what was known of it. It returns the keys for which [Set.Get] answers otherwise now.
func (s *Set) Put(kv KeyValue) (changed []string) { return s.put(newEntry(kv, s.network)) }

// Load puts many keys. To parse them is most of the work, and done side by side.
func (s *Set) Load(kvs []KeyValue) {
	const together = 1000
	var parts []chan []*entry
	for some := range slices.Chunk(kvs, together) {
		part := make(chan []*entry, 1)
		parts = append(parts, part)
		go func() {
			parsed := make([]*entry, len(some))
			for i, kv := range some {
				parsed[i] = newEntry(kv, s.network)
			}
			part <- parsed
		}()
	}
	for _, part := range parts {
		for _, e := range <-part {
			s.put(e)
		}
	}
}

func (s *Set) put(e *entry) (changed []string) {
	old := s.entries[e.key]
	if old == nil || compare(old, e) != 0 {
		return s.swap(old, e)
	}
	// Its rank is the same, so no other key is concerned.
	if e.counts = old.counts; e.counts && !old.Equal(*e.Record) {
		changed = []string{e.key}
	}
	*old = *e
	return changed
}

// Delete takes a key out. It returns the keys for which [Set.Get] answers otherwise now; none if there is no such key.
func (s *Set) Delete(key string) (changed []string) {
	old := s.entries[key]
	if old == nil {
		return nil
	}
	return s.swap(old, nil)
}

// SetNetwork changes the network and judges every key anew. It returns the keys for which [Set.Get] answers
// otherwise now.
func (s *Set) SetNetwork(n Network) (changed []string) {
	next := NewSet(n)
	for _, old := range s.entries {
		e := *old
		e.counts, e.outside = false, n.check(e.Lease)
		next.swap(nil, &e)
	}
	for key, old := range s.entries {
		if old.counts != next.entries[key].counts {
			changed = append(changed, key)
		}
	}
	*s = *next
	slices.Sort(changed)
	return changed
}

// Get returns the lease of a key, if the key counts. What the set returns is never changed, only replaced.
func (s *Set) Get(key string) (*Record, bool) {
	e := s.entries[key]
	if e == nil || !e.counts {
		return nil, false
	}
	return e.Record, true
}

// Find returns what the set holds of a key, whether that counts or not, or nil. The error says that the value is no
// lease: then the record has only the subnets and revisions.
func (s *Set) Find(key string) (*Record, error) {
	e := s.entries[key]
	if e == nil {
		return nil, nil
	}
	return e.Record, e.parse
}

// Elder returns an older key that names an address of this one's subnets. It need not count, as in [Set.Overlaps].
func (s *Set) Elder(key string) (elder string, ok bool) {
	if e := s.entries[key]; e != nil {
		for other, older := range s.Beside(key, e.Subnets()) {
			if older {
				return other, true
			}
		}
	}
	return "", false
}

// Beside lists the keys other than this one that name an address of these subnets, and whether they are older than this
// one. They need not count, as in [Set.Overlaps].
func (s *Set) Beside(key string, subnets []netip.Prefix) iter.Seq2[string, bool] {
	return func(yield func(string, bool) bool) {
		e := s.entries[key]
		for _, p := range subnets {
			for sharers := range s.sharing(p) {
				for _, c := range sharers {
					if c != e && !yield(c.key, e != nil && age(c, e) < 0) {
						return
					}
				}
			}
		}
	}
}

// Len is the number of leases that count.
func (s *Set) Len() int { return s.counted }

// All lists the leases that count by subnet, IPv4 before IPv6 alone.
func (s *Set) All() iter.Seq2[string, *Record] {
	return func(yield func(string, *Record) bool) {
		for subnet, sharers := range s.subnets.AllSorted() {
			e := sharers[0] // the others overlap it
			if e.counts && e.Endpoints[0].Subnet == subnet && !yield(e.key, e.Record) {
				return
			}
		}
	}
}

// Rejected lists the keys that do not count, each with the reason, sorted by key.
func (s *Set) Rejected() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if s.counted == len(s.entries) {
			return
		}
		for _, key := range slices.Sorted(maps.Keys(s.entries)) {
			if err := s.Rejection(key); err != nil && !yield(key, err) {
				return
			}
		}
	}
}

// Rejection says why a key of the set does not count; nil if it does, or if the set has no such key.
func (s *Set) Rejection(key string) error {
	e := s.entries[key]
	switch {
	case e == nil || e.counts:
		return nil
	case e.parse != nil:
		return e.parse
	case e.outside != nil:
		return fmt.Errorf("lease %s: %w", key, e.outside)
	}
	return fmt.Errorf("lease %s: overlaps lease %s, which is older", key, s.elder(e).key)
}

// Overlaps returns a key that names an address of one of these subnets. Every well-formed key does, also one that does
// not count or whose value is nonsense: its subnet must not be leased, since somebody may believe to hold it.
func (s *Set) Overlaps(subnets []netip.Prefix) (key string, ok bool) {
	for _, p := range subnets {
		for e := range s.overlapping(p) {
			return e.key, true
		}
	}
	return "", false
}
