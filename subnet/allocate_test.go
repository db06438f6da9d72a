package subnet

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAllocateOutOfSubnets(t *testing.T) {
	t.Parallel()
	n := mustNetwork(t, "10.244.0.0/16")
	asked := map[netip.Prefix]bool{}
	got, err := n.Allocate(nil, "host", func(subnets []netip.Prefix) bool {
		asked[subnets[0]] = true
		return true
	})
	if !errors.Is(err, ErrOutOfSubnets) {
		t.Fatalf("Allocate = %v, %v, want ErrOutOfSubnets", got, err)
	}
	want := "out of subnets: 255 of the network's 255 subnets were tried, all are taken in 10.244.0.0/16: release leases that " +
		"nobody uses (overlayctl leases list), or give the network a wider range or smaller subnets"
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	if len(asked) != 255 {
		t.Errorf("%d subnets were looked at, want all 255", len(asked))
	}
}

func TestSlots(t *testing.T) {
	t.Parallel()
	tests := []struct {
		network string
		slots   uint64
		last    []netip.Prefix
	}{
		{"10.3.0.0/28", 3, []netip.Prefix{prefix("10.3.0.12/30")}},
		{"10.244.0.0/16", 255, []netip.Prefix{prefix("10.244.255.0/24")}},
		{`{"Network":"10.3.0.0/16","SubnetMin":"10.3.7.0","SubnetMax":"10.3.7.0"}`, 1, []netip.Prefix{prefix("10.3.7.0/24")}},
		{"10.0.0.0/8", 65535, []netip.Prefix{prefix("10.255.255.0/24")}},
		{"10.244.0.0/16,fd00:244::/48", 255, []netip.Prefix{prefix("10.244.255.0/24"), prefix("fd00:244:0:ff::/64")}},
		{"10.244.0.0/16,fd00:244::/62", 3, []netip.Prefix{prefix("10.244.3.0/24"), prefix("fd00:244:0:3::/64")}},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/60","IPv6SubnetLen":120}`, 1<<60 - 1, []netip.Prefix{prefix("fd00:0:0:f:ffff:ffff:ffff:ff00/120")}},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2000::/3","IPv6SubnetLen":126}`, 1 << 62, []netip.Prefix{prefix("2000::1:0:0:0:0/126")}},
	}
	for _, tt := range tests {
		n := mustNetwork(t, tt.network)
		if got := n.Slots(); got != tt.slots {
			t.Errorf("%s: %d slots, want %d", tt.network, got, tt.slots)
		}
		if diff := cmp.Diff(tt.last, n.Slot(tt.slots-1), compareNetip); diff != "" {
			t.Errorf("%s: last slot (-want +got):\n%s", tt.network, diff)
		}
	}
}

func TestFits(t *testing.T) {
	t.Parallel()
	v4 := mustNetwork(t, `{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0"}`)
	dual := mustNetwork(t, "10.3.0.0/16,fd00:3::/48")
	tests := []struct {
		n       Network
		subnets []netip.Prefix
		want    bool
	}{
		{v4, nil, false},
		{v4, []netip.Prefix{{}}, false},
		{v4, []netip.Prefix{prefix("10.3.4.0/24")}, false},
		{v4, []netip.Prefix{prefix("10.3.9.0/24")}, false},
		{v4, []netip.Prefix{prefix("10.3.5.0/25")}, false},
		{v4, []netip.Prefix{prefix("10.3.5.1/24")}, false},
		{v4, []netip.Prefix{prefix("10.3.5.0/24"), prefix("fd00:3:0:1::/64")}, false},
		{v4, []netip.Prefix{prefix("10.3.5.0/24")}, true},
		{v4, []netip.Prefix{prefix("10.3.8.0/24")}, true},
		{dual, []netip.Prefix{prefix("10.3.5.0/24")}, false},
		{dual, []netip.Prefix{prefix("10.3.5.0/24"), prefix("fd00:4:0:1::/64")}, false},
		{dual, []netip.Prefix{prefix("fd00:3:0:1::/64"), prefix("10.3.5.0/24")}, false},
		{dual, []netip.Prefix{prefix("10.3.5.0/24"), prefix("10.3.6.0/24")}, false},
		{dual, []netip.Prefix{prefix("10.3.5.0/24"), prefix("fd00:3:0:9::/64")}, true},
	}
	for _, tt := range tests {
		if got := tt.n.Fits(tt.subnets); got != tt.want {
			t.Errorf("%s: Fits(%v) = %t, want %t", tt.n, tt.subnets, got, tt.want)
		}
	}
}

// TestAllocateAll lets as many hosts claim as there are subnets.
func TestAllocateAll(t *testing.T) {
	t.Parallel()
	n := mustNetwork(t, "10.244.0.0/16,fd00:244::/48")
	s := NewSet(n)
	taken := func(subnets []netip.Prefix) bool { _, ok := s.Overlaps(subnets); return ok }
	for i := range 255 {
		host := fmt.Sprintf("host-%d", i)
		subnets, err := n.Allocate(nil, host, taken)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := n.Allocate(nil, host, taken)
		if diff := cmp.Diff(subnets, again, compareNetip); diff != "" {
			t.Fatalf("asked again, %s is given (-first +second):\n%s", host, diff)
		}
		if !n.Fits(subnets) {
			t.Fatalf("%s is given %v, which does not fit", host, subnets)
		}
		s.Put(KeyValue{keyOf(subnets), []byte(valueA), int64(i), int64(i), 0})
	}
	if s.Len() != 255 {
		t.Errorf("%d leases of 255 subnets", s.Len())
	}
	if _, err := n.Allocate(nil, "one more", taken); !errors.Is(err, ErrOutOfSubnets) {
		t.Errorf("the 256th host: %v", err)
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	const dual, v4, v6 = "10.5.0.0/16,fd00:5::/48", "10.5.0.0/16", "fd00:5::/48"
	list := func(s string) (subnets []netip.Prefix) {
		for _, p := range strings.Fields(s) {
			subnets = append(subnets, prefix(p))
		}
		return subnets
	}
	for _, tt := range []struct {
		name, network, have, taken, want string // taken: ranges; want: subnets, or what the error says
	}{
		{"IPv6 all full", dual, "10.5.65.0/24", "fd00:5::/48", "out of subnets: 65535 of the network's 65535 subnets were tried, all are taken in fd00:5::/48: release"},
		{"IPv4 all full", dual, "fd00:5:0:41::/64", "10.5.0.0/16", "out of subnets: 255 of the network's 255 subnets were tried, all are taken in 10.5.0.0/16: release"},
		{"all full, nothing held", dual, "", "10.5.0.0/16 fd00:5::/48", "out of subnets: 255 of the network's 255 subnets were tried, all are taken in 10.5.0.0/16,fd00:5::/48: release"},
		{"an invalid one", v4, "invalid", "", "10.5.143.0/24"},
		{"nothing held", dual, "", "", "10.5.143.0/24 fd00:5:0:8f::/64"},
		{"another network's", dual, "10.6.65.0/24 fd00:6:0:41::/64", "", "10.5.143.0/24 fd00:5:0:8f::/64"},
		{"of another length", dual, "10.5.65.0/25 fd00:5:0:41::/65", "", "10.5.143.0/24 fd00:5:0:8f::/64"},
		{"host bits", v4, "10.5.65.1/24", "", "10.5.143.0/24"},
		{"the first one, which is not leased", v4, "10.5.0.0/24", "", "10.5.143.0/24"},
		{"IPv6 on", dual, "10.5.65.0/24", "", "10.5.65.0/24 fd00:5:0:41::/64"},
		{"IPv6 on, all that is held counts as taken", dual, "10.5.65.0/24", "10.5.0.0/16", "10.5.65.0/24 fd00:5:0:41::/64"},
		{"IPv6 off", v4, "10.5.65.0/24 fd00:5:0:41::/64", "10.5.0.0/16", "10.5.65.0/24"},
		{"IPv4 on", dual, "fd00:5:0:41::/64", "", "10.5.65.0/24 fd00:5:0:41::/64"},
		{"IPv4 off", v6, "10.5.65.0/24 fd00:5:0:41::/64", "fd00:5::/48", "fd00:5:0:41::/64"},
		{"slot taken in IPv6", dual, "10.5.65.0/24", "fd00:5:0:41::/64 fd00:5:0:42::/64", "10.5.65.0/24 fd00:5:0:43::/64"},
		{"slot taken in IPv4, the last", dual, "fd00:5:0:ff::/64", "10.5.255.0/24 10.5.1.0/24", "10.5.2.0/24 fd00:5:0:ff::/64"},
		{"a slot that IPv4 has not", dual, "fd00:5:0:1234::/64", "", "10.5.70.0/24 fd00:5:0:1234::/64"},
		{"more than half full", dual, "10.5.65.0/24", "10.5.0.0/16 fd00:5:0:40::/58 fd00:5:0:80::/57", "10.5.65.0/24 fd00:5:0:100::/64"},
		{"a pair", dual, "10.5.65.0/24 fd00:5:0:41::/64", "10.5.0.0/16 fd00:5::/48", "10.5.65.0/24 fd00:5:0:41::/64"},
		{"a pair in the wrong order", dual, "fd00:5:0:41::/64 10.5.65.0/24", "", "10.5.65.0/24 fd00:5:0:41::/64"},
		{"flannel's pair", dual, "10.5.65.0/24 fd00:5:0:9::/64", "", "10.5.65.0/24 fd00:5:0:9::/64"},
		{"half of a pair fits", dual, "10.5.65.0/25 fd00:5:0:9::/64", "", "10.5.9.0/24 fd00:5:0:9::/64"},
		{"two of one family", v4, "10.6.1.0/24 10.5.3.0/24 10.5.4.0/24", "", "10.5.3.0/24"},
		{"far more slots in IPv6", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"2000::/3","IPv6SubnetLen":126}`,
			"10.5.65.0/24", "", "10.5.65.0/24 2000::104/126"},
	} {
		n := mustNetwork(t, tt.network)
		have := []netip.Prefix{{}}
		if tt.have != "invalid" {
			have = list(tt.have)
		}
		got, err := n.Allocate(have, "host-1", func(subnets []netip.Prefix) bool {
			for _, p := range subnets {
				if slices.Contains(have, p) {
					t.Errorf("%s: asks whether %s is taken, which the host has", tt.name, p)
				}
				if slices.ContainsFunc(list(tt.taken), p.Overlaps) {
					return true
				}
			}
			return false
		})
		if err != nil {
			if !errors.Is(err, ErrOutOfSubnets) || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("%s: error %q, want %q", tt.name, err, tt.want)
			}
			continue
		}
		if diff := cmp.Diff(list(tt.want), got, compareNetip); diff != "" || !n.Fits(got) {
			t.Errorf("%s: (-want +got)\n%s", tt.name, diff)
		}
	}
}

// TestAllocateIsStable pins the hash: a host that lost its state is to find its old subnet in any version.
func TestAllocateIsStable(t *testing.T) {
	t.Parallel()
	free := func([]netip.Prefix) bool { return false }
	got, err := mustNetwork(t, "10.244.0.0/16").Allocate(nil, "6f1e5a0c", free)
	if diff := cmp.Diff([]netip.Prefix{prefix("10.244.14.0/24")}, got, compareNetip); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// TestAllocatePastWideKey: one key over seven eighths of 2^60 slots must not hold up the search.
func TestAllocatePastWideKey(t *testing.T) {
	t.Parallel()
	n := mustNetwork(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/60","IPv6SubnetLen":120}`)
	free := prefix("fd00:0:0:e::/63")
	probes := 0
	for i := range 100 {
		subnets, err := n.Allocate(nil, fmt.Sprint(i), func(subnets []netip.Prefix) bool {
			probes++
			return !free.Contains(subnets[0].Addr())
		})
		if err != nil || !n.Fits(subnets) {
			t.Fatalf("Allocate = %v, %v", subnets, err)
		}
	}
	if probes > 100*20 {
		t.Errorf("%d probes for 100 hosts", probes)
	}
	if _, err := n.Allocate(nil, "host", func([]netip.Prefix) bool { return true }); !errors.Is(err, ErrOutOfSubnets) {
		t.Errorf("nothing free: %v", err)
	}
}

func TestStride(t *testing.T) {
	t.Parallel()
	for _, slots := range []uint64{1, 2, 255, maxProbes, maxProbes + 1, 1<<32 - 1, 1 << 60, 1<<60 - 1, maxSlots} {
		if step := stride(slots); gcd(step, slots) != 1 || step > slots {
			t.Errorf("stride(%d) = %d", slots, step)
		}
	}
}

func TestUint128(t *testing.T) {
	t.Parallel()
	modulus := new(big.Int).Lsh(big.NewInt(1), 128)
	toBig := func(u uint128) *big.Int {
		b := u.addr(IPv6).As16()
		return new(big.Int).SetBytes(b[:])
	}
	values := []uint128{{}, {0, 1}, {0, 1 << 63}, {0, ^uint64(0)}, {1, 0}, {0xfd00 << 48, 0xdeadbeef}, {^uint64(0), ^uint64(0)}}
	for _, a := range values {
		if back := number(a.addr(IPv6)); back != a {
			t.Errorf("%v turns into %v", a, back)
		}
		for _, b := range values {
			sum, difference := new(big.Int).Add(toBig(a), toBig(b)), new(big.Int).Sub(toBig(a), toBig(b))
			if toBig(a.add(b)).Cmp(sum.Mod(sum, modulus)) != 0 || toBig(a.sub(b)).Cmp(difference.Mod(difference, modulus)) != 0 {
				t.Errorf("%v and %v: sum %v, difference %v", a, b, a.add(b), a.sub(b))
			}
		}
		for n := range uint(129) {
			left, right := new(big.Int).Lsh(toBig(a), n), new(big.Int).Rsh(toBig(a), n)
			if toBig(a.shiftLeft(n)).Cmp(left.Mod(left, modulus)) != 0 || toBig(a.shiftRight(n)).Cmp(right) != 0 {
				t.Errorf("%v shifted by %d: %v, %v", a, n, a.shiftLeft(n), a.shiftRight(n))
			}
		}
	}
}

func BenchmarkAllocate(b *testing.B) {
	n := mustNetwork(b, "10.0.0.0/8")
	s := NewSet(n)
	last := n.Slots() - 1
	for i := range last {
		s.Put(KeyValue{keyOf(n.Slot(i)), []byte(valueA), int64(i), int64(i), 0})
	}
	taken := func(subnets []netip.Prefix) bool { _, ok := s.Overlaps(subnets); return ok }
	b.ReportAllocs()
	for host := 0; b.Loop(); host++ {
		if _, err := n.Allocate(nil, fmt.Sprint(host), taken); err != nil {
			b.Fatal(err)
		}
	}
}
