package underlay

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// The default routes are found among any others, best first.
func TestReadDefaults(t *testing.T) {
	t.Parallel()
	const others = `
ip route add 0.0.0.0/1 dev a0; ip route add 0.0.0.0/8 dev a0; ip route add 0.0.0.0/32 dev a0; ip route add 128.0.0.0/1 dev a0
ip route add ::/1 dev a0; ip route add ::/128 dev a0; ip route add 8000::/1 dev a0; ip route add default dev a0 table 7
ip route add unreachable default metric 1; ip -6 route add unreachable default metric 1
`
	for name, test := range map[string]struct {
		script string
		want   []string
	}{
		"no route at all":     {"", nil},
		"no default route":    {others, nil},
		"one":                 {"ip $f route add default dev a1", []string{"a1"}},
		"one among others":    {others + "ip $f route add default dev a1", []string{"a1"}},
		"the best first":      {others + "ip $f route add default dev a1 metric 30; ip $f route add default dev a2 metric 20", []string{"a2", "a1"}},
		"by several gateways": {others + "ip $f route add default nexthop via $a dev a3 nexthop via $b dev a2", []string{"a3", "a2"}},
		"the same link twice": {others + "ip $f route add default dev a1 metric 30; ip $f route add default dev a1 metric 20", []string{"a1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for family, af := range map[string]uint8{
				"f=-4 a=192.0.2.1 b=192.0.2.129": unix.AF_INET,
				"f=-6 a=fe80::1 b=fe80::2":       unix.AF_INET6,
			} {
				ns := nstest.New(t)
				nstest.Sh(t, ns, "ip link set lo up")
				links := map[int]string{}
				if test.script != "" {
					for i := range 4 {
						nstest.Sh(t, ns, fmt.Sprintf("ip link add a%d index %d type veth peer name b%[1]d; ip link set a%[1]d up; ip link set b%[1]d up", i, 10+i))
						links[10+i] = fmt.Sprintf("a%d", i)
					}
					nstest.Sh(t, ns, "ip address add 192.0.2.2/25 dev a3; ip address add 192.0.2.130/25 dev a2")
					nstest.Sh(t, ns, "seq 250 | sed 's|.*|route add 10.0.&.0/24 dev a0|' | ip -batch -; seq 250 | sed 's|.*|route add 2001:db8:&::/64 dev a0|' | ip -batch -")
				}
				nstest.Sh(t, ns, family+"\n"+test.script)
				indexes, _, err := readDefaults(ns, af)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, index := range indexes {
					got = append(got, links[index])
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", strings.Fields(family)[0], diff)
				}
			}
		})
	}
}
