package subnet

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// model is a Set that is right for being simple.
type model struct {
	network Network
	leases  map[string]modelLease
}

type modelLease struct {
	Record
	parse error
}

func (m model) put(key, value string, create, mod, lease int64) {
	l, err := ParseLease(key, []byte(value))
	m.leases[key] = modelLease{Record{l, create, mod, lease}, err}
}

func (m model) visible() map[string]Record {
	valid := map[string]Record{}
	for key, e := range m.leases {
		if e.parse == nil && m.network.check(e.Lease) == nil {
			valid[key] = e.Record
		}
	}
	older := func(a, b string) bool {
		if valid[a].CreateRevision != valid[b].CreateRevision {
			return valid[a].CreateRevision < valid[b].CreateRevision
		}
		return a < b
	}
	seen := map[string]Record{}
next:
	for key, r := range valid {
		for other, o := range valid {
			if older(other, key) && overlap(r.Lease, o.Lease) {
				continue next
			}
		}
		seen[key] = r
	}
	return seen
}

func overlap(a, b Lease) bool {
	for _, e := range a.Endpoints {
		for _, o := range b.Endpoints {
			if e.Subnet.Overlaps(o.Subnet) {
				return true
			}
		}
	}
	return false
}

// check fails the test unless s answers as the model does, in everything.
func (m model) check(t *testing.T, s *Set) {
	t.Helper()
	want := m.visible()
	got := map[string]Record{}
	for key, r := range s.All() {
		got[key] = *r
	}
	if !maps.EqualFunc(want, got, Record.Equal) || s.Len() != len(want) {
		t.Fatalf("leases, Len %d (-want +got):\n%s", s.Len(), cmp.Diff(want, got, compareNetip))
	}
	rejected := maps.Collect(s.Rejected())
	for key := range m.leases {
		_, counts := s.Get(key)
		_, isRejected := rejected[key]
		if _, want := want[key]; counts != want || isRejected == want {
			t.Fatalf("%s: Get finds it: %t, rejected: %t, should count: %t", key, counts, isRejected, want)
		}
		if subnets, err := ParseKey(key); err == nil {
			if _, ok := s.Overlaps(subnets); !ok {
				t.Fatalf("Overlaps does not count %s", key)
			}
		}
	}
}

// modelKeys nest, repeat each other in one family, lie outside, are too large, and are malformed.
func modelKeys() []string {
	keys := []string{"garbage", "10.6.0.0-24", "10.5.0.0-16", "10.5.0.0-20", "10.5.0.0-22", "10.5.2.0-23", "0.0.0.0-0&fc00:5::-56", "0.0.0.0-0&fc00:5::-60", "0.0.0.0-0&fc00:5:0:3::-64"}
	for i := range 8 {
		keys = append(keys, fmt.Sprintf("10.5.%d.0-24", i), fmt.Sprintf("10.5.%d.0-24&fc00:5:0:%x::-64", i, i+1),
			fmt.Sprintf("10.5.%d.0-24&fc00:5:0:%x::-64", i/2, i+1), fmt.Sprintf("10.5.%d.128-25", i/2))
	}
	return keys
}

func FuzzSet(f *testing.F) {
	for seed := range uint64(60) {
		steps := make([]byte, 150)
		random := rand.New(rand.NewPCG(seed, 0))
		for i := range steps {
			steps[i] = byte(random.Uint32())
		}
		f.Add(steps)
	}
	keys := modelKeys()
	networks := []Network{mustNetwork(f, "10.5.0.0/16,fc00:5::/48"), mustNetwork(f, "10.5.0.0/16"), mustNetwork(f, "10.5.0.0/21"), mustNetwork(f, "fc00:5::/48")}
	values := []string{valueA, valueB, valueA, "nonsense"}
	f.Fuzz(func(t *testing.T, steps []byte) {
		m := model{networks[0], map[string]modelLease{}}
		s := NewSet(m.network)
		for ; len(steps) >= 3 && len(steps) <= 300; steps = steps[3:] {
			before := m.visible()
			key, what := keys[int(steps[0])%len(keys)], steps[1]
			var changed []string
			switch {
			case what >= 250:
				m.network = networks[int(what)%len(networks)]
				changed = s.SetNetwork(m.network)
			case what >= 160:
				delete(m.leases, key)
				changed = s.Delete(key)
			default:
				value, create, mod, lease := values[int(what)%len(values)], int64(steps[2]%16), int64(steps[2]), int64(what%2)
				m.put(key, value, create, mod, lease)
				changed = s.Put(KeyValue{key, []byte(value), create, mod, lease})
			}
			m.check(t, s)
			if want := differences(before, m.visible()); !slices.Equal(want, changed) {
				t.Fatalf("changed (-want +got):\n%s", cmp.Diff(want, changed))
			}
		}
	})
}

func differences(a, b map[string]Record) (keys []string) {
	for key, r := range a {
		if o, ok := b[key]; !ok || !r.Equal(o) {
			keys = append(keys, key)
		}
	}
	for key := range b {
		if _, ok := a[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// TestSetOrder puts the same keys in many orders, one by one and all at once.
func TestSetOrder(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	keys := modelKeys()
	m := model{mustNetwork(t, "10.5.0.0/16,fc00:5::/48"), map[string]modelLease{}}
	for i, key := range keys {
		m.put(key, valueA, int64(i*7%len(keys)), 0, 0)
	}
	for range 50 {
		random.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		s, loaded := NewSet(m.network), NewSet(m.network)
		var all []KeyValue
		for _, key := range keys {
			all = append(all, KeyValue{key, []byte(valueA), m.leases[key].CreateRevision, 0, 0})
			s.Put(all[len(all)-1])
		}
		m.check(t, s)
		loaded.Load(all)
		m.check(t, loaded)
	}
}
