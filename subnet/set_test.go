package subnet

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	valueA = `{"PublicIP":"172.30.0.1","PublicIPv6":"fd00:172::1","BackendType":"vxlan"}`
	valueB = `{"PublicIP":"172.30.0.2","PublicIPv6":"fd00:172::2","BackendType":"vxlan"}`
)

// visible is the set as consumers see it: the keys that count.
func visible(s *Set) []string {
	keys := []string{}
	for key := range s.All() {
		keys = append(keys, key)
	}
	return keys
}

func TestSetRejects(t *testing.T) {
	t.Parallel()
	s := NewSet(mustNetwork(t, "10.5.0.0/16,fc00:5::/48"))
	for i, kv := range [][2]string{
		{"10.5.9.0-24", valueA},
		{"10.5.8.0-22", valueA},
		{"10.5.8.0-24", valueB},
		{"10.5.20.0-24&fc00:5:0:1::-64", valueA},
		{"10.5.21.0-24&fc00:5:0:1::-64", valueA},
		{"10.5.0.0-16", valueA},
		{"10.5.128.0-17", valueA},
		{"10.6.1.0-24", valueA},
		{"10.5.30.0-24&fc00:6:0:1::-64", valueA},
		{"config", valueA},
		{"10.5.40.0-24", "nonsense"},
	} {
		s.Put(kv[0], []byte(kv[1]), int64(i), int64(i), 0)
	}
	got := map[string]string{}
	for key, err := range s.Rejected() {
		got[key] = err.Error()
	}
	want := map[string]string{
		"10.5.8.0-22":                  "lease 10.5.8.0-22: overlaps lease 10.5.9.0-24, which is older",
		"10.5.8.0-24":                  "lease 10.5.8.0-24: overlaps lease 10.5.8.0-22, which is older",
		"10.5.21.0-24&fc00:5:0:1::-64": "lease 10.5.21.0-24&fc00:5:0:1::-64: overlaps lease 10.5.20.0-24&fc00:5:0:1::-64, which is older",
		"10.5.0.0-16":                  "lease 10.5.0.0-16: 10.5.0.0/16 is more than a quarter of the network 10.5.0.0/16,fc00:5::/48",
		"10.5.128.0-17":                "lease 10.5.128.0-17: 10.5.128.0/17 is more than a quarter of the network 10.5.0.0/16,fc00:5::/48",
		"10.6.1.0-24":                  "lease 10.6.1.0-24: 10.6.1.0/24 lies outside the network 10.5.0.0/16,fc00:5::/48",
		"10.5.30.0-24&fc00:6:0:1::-64": "lease 10.5.30.0-24&fc00:6:0:1::-64: fc00:6:0:1::/64 lies outside the network 10.5.0.0/16,fc00:5::/48",
		"config":                       `lease key "config": "config" is not an IPv4 subnet in the form <address>-<length>`,
		"10.5.40.0-24":                 "lease 10.5.40.0-24: the value is not a JSON object: invalid character 'o' in literal null (expecting 'u')",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rejected (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"10.5.9.0-24", "10.5.20.0-24&fc00:5:0:1::-64"}, visible(s)); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
	if _, ok := s.Get("10.5.8.0-24"); ok || s.Len() != 2 {
		t.Errorf("Get finds a rejected key, or Len is %d", s.Len())
	}
}

func TestSetOverlapsCountsEveryKey(t *testing.T) {
	t.Parallel()
	s := NewSet(mustNetwork(t, "10.5.0.0/16"))
	s.Put("10.5.9.0-24", []byte(valueA), 1, 1, 0)
	s.Put("10.5.9.0-26", []byte(valueA), 2, 2, 0)
	s.Put("10.5.40.0-24", []byte("nonsense"), 3, 3, 0)
	s.Put("10.6.0.0-16&fc00::-64", []byte(valueA), 4, 4, 0)
	s.Put("10.5.50.0-24hi", []byte(valueA), 5, 5, 0)
	tests := map[netip.Prefix]string{
		prefix("10.5.50.0/24"):   "",
		prefix("10.5.8.0/24"):    "",
		prefix("10.5.9.0/24"):    "10.5.9.0-24",
		prefix("10.5.9.0/28"):    "10.5.9.0-26",
		prefix("10.5.9.128/25"):  "10.5.9.0-24",
		prefix("10.5.8.0/22"):    "10.5.9.0-24",
		prefix("10.5.40.0/24"):   "10.5.40.0-24",
		prefix("10.6.77.0/24"):   "10.6.0.0-16&fc00::-64",
		prefix("fc00::8000/120"): "10.6.0.0-16&fc00::-64",
	}
	for p, want := range tests {
		if key, ok := s.Overlaps([]netip.Prefix{prefix("10.5.1.0/24"), p}); key != want || ok != (want != "") {
			t.Errorf("Overlaps(%s) = %q, %t, want %q", p, key, ok, want)
		}
	}
	s.Delete("10.5.40.0-24")
	if key, ok := s.Overlaps([]netip.Prefix{prefix("10.5.40.0/24")}); ok {
		t.Errorf("the deleted key %s still overlaps", key)
	}
}

// TestSetChanges follows one address through the claims on it.
func TestSetChanges(t *testing.T) {
	t.Parallel()
	const narrow, wide, gone = "10.5.9.0-24", "10.5.8.0-22", "10.5.77.0-24"
	s := NewSet(mustNetwork(t, "10.5.0.0/16"))
	put := func(key, value string, create, mod, lease int64) func() []string {
		return func() []string { return s.Put(key, []byte(value), create, mod, lease) }
	}
	for _, step := range []struct {
		name    string
		do      func() []string
		changed []string
		visible []string
	}{
		{"delete the absent", func() []string { return s.Delete(gone) }, nil, []string{}},
		{"first", put(narrow, valueA, 5, 5, 1), []string{narrow}, []string{narrow}},
		{"the same again", put(narrow, valueA, 5, 5, 1), nil, []string{narrow}},
		{"renewed by flannel", put(narrow, valueA, 5, 6, 2), []string{narrow}, []string{narrow}},
		{"newer claim", put(wide, valueB, 7, 7, 3), nil, []string{narrow}},
		{"newer claim changes", put(wide, valueA, 7, 8, 3), nil, []string{narrow}},
		{"the older one turns bad", put(narrow, "nonsense", 5, 9, 1), []string{wide, narrow}, []string{wide}},
		{"and good again", put(narrow, valueB, 5, 10, 1), []string{wide, narrow}, []string{narrow}},
		{"it goes", func() []string { return s.Delete(narrow) }, []string{wide, narrow}, []string{wide}},
		{"it comes back, newer", put(narrow, valueA, 11, 11, 4), nil, []string{wide}},
		{"narrower network", func() []string { return s.SetNetwork(mustNetwork(t, "10.5.9.0/22")) }, []string{wide, narrow}, []string{narrow}},
		{"the same network", func() []string { return s.SetNetwork(mustNetwork(t, "10.5.9.0/22")) }, nil, []string{narrow}},
		{"other network", func() []string { return s.SetNetwork(mustNetwork(t, "10.6.0.0/16")) }, []string{narrow}, []string{}},
		{"other family", func() []string { return s.SetNetwork(mustNetwork(t, "fc00::/48")) }, nil, []string{}},
		{"back", func() []string { return s.SetNetwork(mustNetwork(t, "10.5.0.0/16")) }, []string{wide}, []string{wide}},
	} {
		if diff := cmp.Diff(step.changed, step.do()); diff != "" {
			t.Errorf("%s: changed (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(step.visible, visible(s)); diff != "" {
			t.Errorf("%s: leases (-want +got):\n%s", step.name, diff)
		}
	}
	want := Record{Lease: Lease{Backend: "vxlan", Endpoints: []Endpoint{{Subnet: prefix("10.5.8.0/22"), PublicIP: addr("172.30.0.1")}}},
		CreateRevision: 7, ModRevision: 8, LeaseID: 3}
	got, _ := s.Get(wide)
	if diff := cmp.Diff(want, got, compareNetip); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}

// model is a Set that is right for being simple.
type model struct {
	network Network
	leases  map[string]modelLease
}

type modelLease struct {
	value      string
	create     int64
	mod, lease int64
}

func (m model) visible() map[string]Record {
	valid := map[string]Record{}
	for key, e := range m.leases {
		if l, err := ParseLease(key, []byte(e.value)); err == nil && m.network.check(l) == nil {
			valid[key] = Record{l, e.create, e.mod, e.lease}
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
			if older(other, key) && overlap(r.Subnets(), o.Subnets()) {
				continue next
			}
		}
		seen[key] = r
	}
	return seen
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(p netip.Prefix) bool { return slices.ContainsFunc(b, p.Overlaps) })
}

// check fails the test unless s answers as the model does, in everything.
func (m model) check(t *testing.T, s *Set) {
	t.Helper()
	want := m.visible()
	got := maps.Collect(s.All())
	if diff := cmp.Diff(want, got, compareNetip); diff != "" || s.Len() != len(want) {
		t.Fatalf("leases, Len %d (-want +got):\n%s", s.Len(), diff)
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

// modelKeys nest, repeat each other in one family, lie outside, and are malformed.
func modelKeys() []string {
	keys := []string{"garbage", "10.6.0.0-24", "10.5.0.0-16", "10.5.0.0-18", "10.5.0.0-20", "10.5.2.0-23", "0.0.0.0-0&fc00:5::-56", "0.0.0.0-0&fc00:5:0:3::-64"}
	for i := range 8 {
		keys = append(keys, fmt.Sprintf("10.5.%d.0-24", i), fmt.Sprintf("10.5.%d.0-24&fc00:5:0:%x::-64", i, i+1),
			fmt.Sprintf("10.5.%d.0-24&fc00:5:0:%x::-64", i/2, i+1), fmt.Sprintf("10.5.%d.128-25", i/2))
	}
	return keys
}

func FuzzSet(f *testing.F) {
	for seed := range uint64(12) {
		steps := make([]byte, 450)
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
		for ; len(steps) >= 3 && len(steps) <= 1200; steps = steps[3:] {
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
				l := modelLease{values[int(what)%len(values)], int64(steps[2] % 16), int64(steps[2]), int64(what % 2)}
				m.leases[key] = l
				changed = s.Put(key, []byte(l.value), l.create, l.mod, l.lease)
			}
			m.check(t, s)
			if diff := cmp.Diff(differences(before, m.visible()), changed); diff != "" {
				t.Fatalf("changed (-want +got):\n%s", diff)
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

// TestSetOrder puts the same keys in many orders.
func TestSetOrder(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	keys := modelKeys()
	m := model{mustNetwork(t, "10.5.0.0/16,fc00:5::/48"), map[string]modelLease{}}
	for i, key := range keys {
		m.leases[key] = modelLease{value: valueA, create: int64(i * 7 % len(keys))}
	}
	for range 50 {
		random.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		s := NewSet(m.network)
		for _, key := range keys {
			s.Put(key, []byte(m.leases[key].value), m.leases[key].create, 0, 0)
		}
		m.check(t, s)
	}
}

// TestSetUnderAttack loads sets that a naive implementation needs minutes for.
func TestSetUnderAttack(t *testing.T) {
	t.Parallel()
	const n = 10_000
	attacks := map[string]func(i int) string{
		"garbage":               func(i int) string { return fmt.Sprintf("garbage-%d", i) },
		"one subnet":            func(i int) string { return fmt.Sprintf("10.5.9.0-24&fc00:5:0:%x::-64", i+1) },
		"all below the oldest":  func(i int) string { return nested(i, 14) },
		"all below the newest":  func(i int) string { return nested(n-1-i, 14) },
		"every length":          func(i int) string { return nested(i/19, 13+i%19) },
		"outside":               func(i int) string { return fmt.Sprintf("11.%d.%d.0-24", i/256, i%256) },
		"all in the other form": func(i int) string { return fmt.Sprintf("10.005.%d.0-24", i) },
	}
	for name, key := range attacks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := NewSet(mustNetwork(t, "10.0.0.0/8,fc00:5::/48"))
			start := time.Now()
			for i := range n {
				s.Put(key(i), []byte(valueA), int64(i), int64(i), 1)
			}
			for i := range n {
				s.Delete(key(i))
			}
			// Some 50 ms; the bound is for a busy machine with the race detector.
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			if s.Len() != 0 || len(visible(s)) != 0 || s.subnets.Size() != 0 {
				t.Errorf("%d leases and %d subnets are left of an empty set", s.Len(), s.subnets.Size())
			}
		})
	}
}

// nested returns a wide key for 0 and narrow keys below it for the others.
func nested(i, wide int) string {
	if i == 0 {
		return fmt.Sprintf("10.0.0.0-%d", wide)
	}
	p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 12), byte(i >> 4), byte(i << 4)}), max(wide, 28)).Masked()
	return fmt.Sprintf("%s-%d", p.Addr(), p.Bits())
}

func BenchmarkSetPut(b *testing.B) {
	for _, size := range []int{10, 10_000, 60_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			n := mustNetwork(b, "10.0.0.0/8")
			s := NewSet(n)
			keys := make([]string, size)
			value := func(i int) []byte {
				return fmt.Appendf(nil, `{"PublicIP":"172.%d.%d.%d","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:96:93:%02x:%02x:%02x"},"HostID":"%032x","Host":"node-%d"}`,
					16+i>>16, byte(i>>8), byte(i), byte(i>>16), byte(i>>8), byte(i), i, i)
			}
			for i := range size {
				keys[i] = keyOf(n.Slot(uint64(i)))
				s.Put(keys[i], value(i), int64(i), int64(i), int64(i))
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			again := value(0)
			rev := int64(size)
			b.ReportAllocs()
			for b.Loop() {
				key := keys[rev%int64(size)]
				s.Delete(key)
				s.Put(key, again, rev, rev, 1)
				rev++
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(size), "B/lease")
		})
	}
}
