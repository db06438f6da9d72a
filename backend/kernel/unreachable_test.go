package kernel

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// routesTo is what ip shows of the routes to a network, but for what it says of IPv6 alone.
func (r *running) routesTo(u Unreachable) []string {
	r.t.Helper()
	family := "-4"
	if u.Dst.Addr().Is6() {
		family = "-6"
	}
	out := nstest.Sh(r.t, r.ns, fmt.Sprintf("ip %s route show %s proto 111", family, u.Dst))
	for _, noise := range []string{" pref medium", " dev lo", " error -113"} {
		out = strings.ReplaceAll(out, noise, "")
	}
	return strings.Split(strings.TrimSpace(out), "\n")
}

// The route for the own subnet is put, put back, outlives all links, lets others win, and goes when nobody wants it, or at the
// next start.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		u := Unreachable{o.subnet(1)}
		want := []string{fmt.Sprintf("unreachable %s metric 16777215", u.Dst)}
		r := start(t, testHost(t))
		put := func() { r.Replace("", []Claim{{"self", []Object{u}}}) }
		put()
		r.inStep()
		if diff := cmp.Diff(want, r.routesTo(u)); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
		nstest.Sh(t, r.ns, "ip route del unreachable "+u.Dst.String())
		r.healedTo(KindRoute, 1)
		nstest.Sh(t, r.ns, fmt.Sprintf("ip route replace %s via %s dev eth0 proto bird metric 16777215", u.Dst, o.hostgw(2)))
		r.healedTo(KindRoute, 2)
		if diff := cmp.Diff(want, r.routesTo(u)); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
		nstest.Sh(t, r.ns, fmt.Sprintf("ip route add %s via %s dev eth0 proto bird", u.Dst, o.hostgw(2)))
		if got := nstest.Sh(t, r.ns, "ip route get "+o.subnet(1).Addr().Next().String()); !strings.Contains(got, "dev eth0") {
			t.Errorf("it keeps another from winning: %s", got)
		}
		r.stop()

		r = start(t, r.ns)
		put()
		r.inStep()
		if diff := cmp.Diff(want, r.routesTo(u)); diff != "" {
			t.Errorf("after a restart (-want +got)\n%s", diff)
		}
		if healed := r.Status().Healed[KindRoute]; healed != 0 {
			t.Errorf("%d healed that were there", healed)
		}
		r.Replace("", nil)
		r.inStep()
		if got := r.routesTo(u); got[0] != "" {
			t.Errorf("nobody wants %v", got)
		}
		put()
		r.inStep()
		r.stop()

		r = start(t, r.ns)
		r.Replace("", byName(o.network(1)))
		r.inStep()
		if got := r.routesTo(u); strings.Contains(strings.Join(got, " "), "unreachable") {
			t.Errorf("left of before: %v", got)
		}
		r.Replace("", []Claim{{"self", []Object{u}}, {"peer", o.peer(1)}, {"link", o.self()}}) // both have a place
		r.inStep()
		r.stop()
		removed, err := Cleanup(t.Context(), Config{Namespace: r.ns})
		if err != nil || !strings.Contains(strings.Join(removed, ", "), "2 routes") {
			t.Errorf("cleanup: %v, %v", removed, err)
		}
	})
}
