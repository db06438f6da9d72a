package subnet

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
)

// entry is a key of a [Set] and what is known of it.
type entry struct {
	*Record // of a malformed value, only the subnets and revisions; of a malformed key, only the revisions
	key     string
	parse   error // why the key or the value is malformed
	outside error // why the lease does not belong to the network
	counts  bool  // kept by Set.swap
}

func newEntry(kv KeyValue, n Network) *entry {
	e := &entry{key: kv.Key, Record: &Record{CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, LeaseID: kv.LeaseID}}
	subnets, err := ParseKey(kv.Key)
	if err != nil {
		e.parse = err
		return e
	}
	if e.Lease, err = parseValue(subnets, kv.Value); err != nil {
		e.parse = fmt.Errorf("lease %s: %w", kv.Key, err)
		for _, p := range subnets {
			e.Endpoints = append(e.Endpoints, Endpoint{Subnet: p})
		}
	}
	e.outside = n.check(e.Lease)
	return e
}

// check says why a lease does not belong to the network. A family that the network lacks is no reason: while an
// operator turns a family on or off, leases of both kinds live side by side.
func (n Network) check(l Lease) error {
	shared := false
	for _, e := range l.Endpoints {
		if _, ok := n.Pool(FamilyOf(e.Subnet.Addr())); !ok {
			continue
		}
		shared = true
		if err := n.Admit(e.Subnet); err != nil {
			return err
		}
	}
	if !shared {
		return errors.New("no family in common with the network " + n.String())
	}
	return nil
}

func (e *entry) valid() bool { return e.parse == nil && e.outside == nil }

// compare sorts valid entries before others, and older ones before newer ones.
func compare(a, b *entry) int {
	if a.valid() != b.valid() {
		if a.valid() {
			return -1
		}
		return 1
	}
	return age(a, b)
}

// age sorts older entries before newer ones.
func age(a, b *entry) int {
	return cmp.Or(cmp.Compare(a.CreateRevision, b.CreateRevision), cmp.Compare(a.key, b.key))
}

// silences reports whether e keeps c, which overlaps it and is valid, from counting. An invalid e does not, since it
// sorts behind c; nor does nil.
func (e *entry) silences(c *entry) bool {
	return e != nil && compare(e, c) < 0
}

// swap takes old out and puts e in. Both are of one key; either may be nil. It returns the keys whose answer changed.
//
// Only the oldest entry of a subnet, its first, can silence others. So if that one stays, nobody else is concerned;
// if not, those are that stand first in an overlapping subnet: the rest of them are silenced by their own first one.
func (s *Set) swap(old, e *entry) (changed []string) {
	either := cmp.Or(e, old)
	counted := old != nil && old.counts
	subnets := either.Subnets()
	before := make([]*entry, len(subnets))
	for i, p := range subnets {
		before[i] = s.first(p)
	}
	if old != nil {
		s.remove(old)
	}
	if e != nil {
		s.insert(e)
	}
	for i, p := range subnets {
		for _, c := range s.review(p, before[i]) {
			if c != e {
				changed = append(changed, c.key)
			}
		}
	}
	counts := e != nil && e.counts
	if counted != counts || counted && !old.Equal(*e.Record) {
		changed = append(changed, either.key)
	}
	slices.Sort(changed)
	return changed
}

func (s *Set) insert(e *entry) {
	s.entries[e.key] = e
	for _, p := range e.Subnets() {
		s.subnets.Modify(p, func(sharers []*entry, _ bool) ([]*entry, bool) {
			i, _ := slices.BinarySearchFunc(sharers, e, compare)
			return slices.Insert(sharers, i, e), false
		})
	}
}

func (s *Set) remove(e *entry) {
	delete(s.entries, e.key)
	if e.counts {
		e.counts = false
		s.counted--
	}
	for _, p := range e.Subnets() {
		s.subnets.Modify(p, func(sharers []*entry, _ bool) ([]*entry, bool) {
			i, _ := slices.BinarySearchFunc(sharers, e, compare)
			sharers = slices.Delete(sharers, i, i+1)
			return sharers, len(sharers) == 0
		})
	}
}

// review corrects counts after the first entry of subnet p, which was was, may have changed. It returns the entries
// that it corrected.
func (s *Set) review(p netip.Prefix, was *entry) (corrected []*entry) {
	is := s.first(p)
	if is == was {
		return nil
	}
	correct := func(c *entry, by int) {
		c.counts = !c.counts
		s.counted += by
		corrected = append(corrected, c)
	}
	if was != nil && was.counts && is.silences(was) {
		correct(was, -1)
	}
	for c := range s.overlapping(p) {
		switch {
		case c.counts && is.silences(c):
			correct(c, -1)
		// The search for an elder is the costly step, so it is only for those that are new here or may have lost theirs.
		case !c.counts && c.valid() && (c == is || was.silences(c)) && s.elder(c) == nil:
			correct(c, +1)
		}
	}
	return corrected
}

// elder returns an entry that silences e; nil if there is none.
func (s *Set) elder(e *entry) *entry {
	for _, endpoint := range e.Endpoints {
		for c := range s.overlapping(endpoint.Subnet) {
			if c.silences(e) {
				return c
			}
		}
	}
	return nil
}

// first returns the oldest entry of exactly the subnet p.
func (s *Set) first(p netip.Prefix) *entry {
	if sharers, ok := s.subnets.Get(p); ok {
		return sharers[0]
	}
	return nil
}

// overlapping lists the first entry of every subnet that overlaps p, that of p twice.
func (s *Set) overlapping(p netip.Prefix) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for sharers := range s.sharing(p) {
			if !yield(sharers[0]) {
				return
			}
		}
	}
}

// sharing lists the entries of every subnet that overlaps p, those of p twice.
func (s *Set) sharing(p netip.Prefix) iter.Seq[[]*entry] {
	return func(yield func([]*entry) bool) {
		for _, sharers := range s.subnets.Supernets(p) {
			if !yield(sharers) {
				return
			}
		}
		for _, sharers := range s.subnets.Subnets(p) {
			if !yield(sharers) {
				return
			}
		}
	}
}
