package underlay

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

func TestOnLink(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	nstest.Sh(t, ns, nstest.LAN)
	nstest.Sh(t, ns, `
ip route add 198.51.100.0/24 via 192.0.2.254
ip route add 203.0.113.0/24 nexthop via 192.0.2.253 nexthop via 192.0.2.254
ip route add 203.0.113.9/32 dev wire0
ip route add unreachable 198.51.100.128/25
ip route add 2001:db8:1::/48 via 2001:db8::fe
ip route add blackhole 2001:db8:2::/48`)
	index := map[string]int{}
	for _, link := range []string{"eth0", "wire0"} {
		n, err := strconv.Atoi(strings.TrimSpace(nstest.Sh(t, ns, "ip -o link show dev "+link+" | cut -d: -f1")))
		if err != nil {
			t.Fatal(err)
		}
		index[link] = n
	}
	var addrs []netip.Addr
	var want []int
	for _, a := range []struct {
		addr string
		on   string
	}{
		{"198.51.100.1", ""}, {"198.51.100.200", ""}, {"203.0.113.1", ""}, {"8.8.8.8", ""}, {"192.0.2.1", ""},
		{"2001:db8:1::1", ""}, {"2001:db8:2::1", ""}, {"2001:db8:3::1", ""}, {"2001:db8::1", ""},
		{"192.0.2.77", "eth0"}, {"203.0.113.9", "wire0"}, {"2001:db8::77", "eth0"},
	} {
		for range 50 { // more than one batch in all
			addrs, want = append(addrs, netip.MustParseAddr(a.addr)), append(want, index[a.on])
		}
	}
	for range 2 {
		got, err := OnLink(ns, addrs)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", addrs, diff)
		}
	}
	if got, err := OnLink(ns, nil); err != nil || len(got) > 0 {
		t.Errorf("of none: %v, %v", got, err)
	}
}
