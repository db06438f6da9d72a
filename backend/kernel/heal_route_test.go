package kernel

import (
	"fmt"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// A route of somebody else's takes the place of ours, and the kernel says nothing of ours: not that it is gone, nor that
// it shares its packets with another or stands behind it.
func TestHealUsurpedRoute(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"replaced by a static one":       "ip route replace $dst via $via dev eth0 proto static metric $metric",
		"replaced by a routing daemon":   "ip route replace $dst via $via dev eth0 proto bird metric $metric",
		"replaced by hand":               "ip route replace $dst via $via dev eth0 metric $metric",
		"changed":                        "ip route change $dst via $via dev eth0 proto static metric $metric",
		"replaced, no gateway":           "ip route replace $dst dev eth0 proto static metric $metric",
		"replaced by two gateways":       "ip route replace $dst proto bird metric $metric nexthop via $via dev eth0 nexthop via $via2 dev eth0",
		"replaced by a blackhole":        "ip route replace blackhole $dst proto static metric $metric",
		"replaced by a blackhole, as us": "ip route replace blackhole $dst proto 111 metric $metric",
		"put before, or joined":          "ip route prepend $dst via $via dev eth0 proto static metric $metric",
		"removed, and theirs added":      "ip route del $dst; ip route add $dst via $via dev eth0 proto static metric $metric",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachFamily(t, func(t *testing.T, o overlay) {
				r := startWith(t, o, 3)
				ns := r.ns
				r.unseen(variables(o) + script)
				r.healedExactly(map[Kind]int{KindRoute: 1})
				r.has(o, 1, 2, 3)
				if got := nstest.Sh(t, ns, variables(o)+"ip $family route show $dst"); strings.Count(got, "\n") != 1 {
					t.Errorf("routes: %q, want only ours", got)
				}
			})
		})
	}
}

// What took the place of ours while nobody listened gives it back at the next start.
func TestUsurpedWhileDown(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		r := startWith(t, o, 3)
		ns := r.ns
		r.stop()
		nstest.Sh(t, ns, variables(o)+"ip route replace $dst via $via dev eth0 proto bird metric $metric")
		r = start(t, ns)
		r.Replace("", byName(o.network(3)))
		r.inStep()
		r.has(o, 1, 2, 3)
		if got := nstest.Sh(t, ns, variables(o)+"ip $family route show $dst"); strings.Count(got, "\n") != 1 {
			t.Errorf("routes: %q, want only ours", got)
		}
	})
}

// What others put to the same destination is theirs where it does not take the place of ours.
func TestRouteBesideOurs(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"no metric":        "ip route replace $dst via $via dev eth0 proto static",
		"a greater metric": "ip route replace $dst via $via dev eth0 proto bird metric $((metric + 1))",
		"a lesser metric":  "ip route replace $dst via $via dev eth0 proto bird metric $((metric - 1))",
		"another table":    "ip route replace $dst via $via dev eth0 proto static metric $metric table 100",
		"another network":  "ip route replace $dst2 via $via dev eth0 proto static metric $metric",
		"some packets":     "ip route replace $dst $some via $via dev eth0 proto static metric $metric",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachFamily(t, func(t *testing.T, o overlay) {
				r := startWith(t, o, 3)
				ns := r.ns
				nstest.Sh(t, ns, variables(o)+script)
				nstest.Sh(t, ns, fmt.Sprintf("ip neighbour del %s dev %s", o.subnet(2).Addr(), o.link.Name))
				r.healedExactly(map[Kind]int{KindNeighbour: 1})
				r.has(o, 1, 2, 3)
				if got := nstest.Sh(t, ns, "ip route show table all; ip -6 route show table all"); !strings.Contains(got, "via "+o.hostgw(8).String()) {
					t.Errorf("routes: %q, want also that of others", got)
				}
			})
		})
	}
}

// variables are what a script needs that meddles with the route to peer 1.
func variables(o overlay) string {
	dst, family, some := o.subnet(1), "-4", "tos 0x10"
	if dst.Addr().Is6() {
		family, some = "-6", "from 2001:db8:1::/48"
	}
	return fmt.Sprintf("family=%s dst=%s metric=%d via=%s via2=%s dst2=%s some=%q\n",
		family, dst, metric(dst), o.hostgw(8), o.hostgw(9), o.subnet(200), some)
}
