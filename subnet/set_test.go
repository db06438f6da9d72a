package subnet

import (
	"net/netip"
	"testing"

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
		{"10.5.128.0-19", valueA},
		{"10.5.64.0-20&fc00:5:0:20::-59", valueA},
		{"10.5.64.0-20&fc00:5:0:20::-60", valueA},
		{"10.6.1.0-24", valueA},
		{"10.5.30.0-24&fc00:6:0:1::-64", valueA},
		{"config", valueA},
		{"10.5.40.0-24", "nonsense"},
	} {
		s.Put(KeyValue{kv[0], []byte(kv[1]), int64(i), int64(i), 0})
	}
	got := map[string]string{}
	for key, err := range s.Rejected() {
		got[key] = err.Error()
	}
	want := map[string]string{
		"10.5.8.0-22":                   "lease 10.5.8.0-22: overlaps lease 10.5.9.0-24, which is older",
		"10.5.8.0-24":                   "lease 10.5.8.0-24: overlaps lease 10.5.8.0-22, which is older",
		"10.5.21.0-24&fc00:5:0:1::-64":  "lease 10.5.21.0-24&fc00:5:0:1::-64: overlaps lease 10.5.20.0-24&fc00:5:0:1::-64, which is older",
		"10.5.0.0-16":                   "lease 10.5.0.0-16: 10.5.0.0/16 is too large for a lease of the network 10.5.0.0/16,fc00:5::/48: at most a /20 is followed",
		"10.5.128.0-19":                 "lease 10.5.128.0-19: 10.5.128.0/19 is too large for a lease of the network 10.5.0.0/16,fc00:5::/48: at most a /20 is followed",
		"10.5.64.0-20&fc00:5:0:20::-59": "lease 10.5.64.0-20&fc00:5:0:20::-59: fc00:5:0:20::/59 is too large for a lease of the network 10.5.0.0/16,fc00:5::/48: at most a /60 is followed",
		"10.6.1.0-24":                   "lease 10.6.1.0-24: 10.6.1.0/24 lies outside the network 10.5.0.0/16,fc00:5::/48",
		"10.5.30.0-24&fc00:6:0:1::-64":  "lease 10.5.30.0-24&fc00:6:0:1::-64: fc00:6:0:1::/64 lies outside the network 10.5.0.0/16,fc00:5::/48",
		"config":                        `lease key "config": "config" is not an IPv4 subnet in the form <address>-<length>`,
		"10.5.40.0-24":                  "lease 10.5.40.0-24: the value is not a JSON object: invalid character 'o' in literal null (expecting 'u')",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rejected (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"10.5.9.0-24", "10.5.20.0-24&fc00:5:0:1::-64", "10.5.64.0-20&fc00:5:0:20::-60"}, visible(s)); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
	if _, ok := s.Get("10.5.8.0-24"); ok || s.Len() != 3 {
		t.Errorf("Get finds a rejected key, or Len is %d", s.Len())
	}
}

func TestSetOverlapsCountsEveryKey(t *testing.T) {
	t.Parallel()
	s := NewSet(mustNetwork(t, "10.5.0.0/16"))
	s.Put(KeyValue{"10.5.9.0-24", []byte(valueA), 1, 1, 0})
	s.Put(KeyValue{"10.5.9.0-26", []byte(valueA), 2, 2, 0})
	s.Put(KeyValue{"10.5.40.0-24", []byte("nonsense"), 3, 3, 0})
	s.Put(KeyValue{"10.6.0.0-16&fc00::-64", []byte(valueA), 4, 4, 0})
	s.Put(KeyValue{"10.5.50.0-24hi", []byte(valueA), 5, 5, 0})
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
		return func() []string { return s.Put(KeyValue{key, []byte(value), create, mod, lease}) }
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
	if diff := cmp.Diff(&want, got, compareNetip); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}
