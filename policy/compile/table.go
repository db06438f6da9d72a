package compile

import "hash/maphash"

// table finds the endpoints that have an address. It does not keep the addresses, which the endpoints do: with 12 bytes for each it
// is a third of a map from addresses to endpoints. Those that have the same address are all in it.
type table struct {
	seed maphash.Seed
	hash []uint32
	of   []*endpoint // nil: the slot is free
	n    int
}

func newTable() table {
	return table{seed: maphash.MakeSeed(), hash: make([]uint32, 8), of: make([]*endpoint, 8)}
}

func (t *table) hashOf(a addr) uint32 { return uint32(maphash.Comparable(t.seed, a)) }

// find returns one that has the address, or nil.
func (t *table) find(a addr) *endpoint {
	h := t.hashOf(a)
	for i := int(h) & (len(t.of) - 1); t.of[i] != nil; i = t.after(i) {
		if t.hash[i] == h && t.of[i].has(a) {
			return t.of[i]
		}
	}
	return nil
}

func (t *table) after(i int) int { return (i + 1) & (len(t.of) - 1) }

func (t *table) add(a addr, e *endpoint) {
	if t.n++; t.n > len(t.of)/8*7 {
		t.resize(2 * len(t.of))
	}
	t.put(t.hashOf(a), e)
}

func (t *table) put(h uint32, e *endpoint) {
	i := int(h) & (len(t.of) - 1)
	for t.of[i] != nil {
		i = t.after(i)
	}
	t.hash[i], t.of[i] = h, e
}

// remove takes out what add has put in.
func (t *table) remove(a addr, e *endpoint) {
	h := t.hashOf(a)
	i := int(h) & (len(t.of) - 1)
	for t.hash[i] != h || t.of[i] != e {
		i = t.after(i)
	}
	t.of[i] = nil
	// What has been put behind it because it was there comes to where it would be otherwise.
	for j := t.after(i); t.of[j] != nil; j = t.after(j) {
		h, e := t.hash[j], t.of[j]
		t.of[j] = nil
		t.put(h, e)
	}
	if t.n--; t.n < len(t.of)/8 && len(t.of) > 8 {
		t.resize(len(t.of) / 2)
	}
}

func (t *table) resize(size int) {
	hash, of := t.hash, t.of
	t.hash, t.of = make([]uint32, size), make([]*endpoint, size)
	for i, e := range of {
		if e != nil {
			t.put(hash[i], e)
		}
	}
}
