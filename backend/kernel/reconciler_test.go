package kernel

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

func (r *running) has(o overlay, peers ...int) {
	r.t.Helper()
	if diff := cmp.Diff(wantsOf(o, peers...), kernelHas(r.t, r.ns, o)); diff != "" {
		r.t.Errorf("kernel (-want +got):\n%s", diff)
	}
}

func TestPutChangeRemove(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		before := dumpOf(t, ns)
		r := start(t, ns)
		r.Replace("", byName(o.network(3)))
		r.inStep()
		r.has(o, 1, 2, 3)

		all := dumpOf(t, ns)
		r.Replace("", byName(o.network(3)))
		r.inStep()
		sameDump(t, all, dumpOf(t, ns))

		// Peer 2 comes back with the subnet of peer 7 and the MAC and address of peer 8: each is one put or removal.
		moved := o.peer(2)
		route := o.peer(7)[2].(Route)
		moved[2] = route
		moved[0] = Neighbour{Link: o.link.Name, IP: o.subnet(2).Addr(), MAC: peerMAC(8)}
		moved[1] = FDB{Link: o.link.Name, MAC: peerMAC(2), Dst: o.vtep(8)}
		r.Update("", []Claim{{"peer2", moved}, {"peer3", nil}})
		r.inStep()
		want := wantsOf(o, 1, 2)
		want[3] = strings.Replace(want[3], peerMAC(2).String(), peerMAC(8).String(), 1)
		want[5] = strings.Replace(want[5], o.vtep(2).String(), o.vtep(8).String(), 1)
		want[7] = strings.ReplaceAll(want[7], o.subnet(2).Addr().String(), o.subnet(7).Addr().String())
		if diff := cmp.Diff(want, kernelHas(t, ns, o)); diff != "" {
			t.Errorf("changed (-want +got):\n%s", diff)
		}

		r.Replace("", nil)
		r.inStep()
		sameDump(t, before, dumpOf(t, ns))
		if s := r.Status(); len(s.Healed) > 0 {
			t.Errorf("healed %v though nobody else changed anything", s.Healed)
		}
	})
}

func TestLinkWaitsForUnderlay(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := nstest.New(t)
		r := start(t, ns)
		r.Replace("", byName(o.network(3)))
		r.until("waiting", func(s Status) bool { return s.Pending == 11 && len(s.Failed) == 0 })
		nstest.Sh(t, ns, nstest.LAN)
		r.inStep()
		r.has(o, 1, 2, 3)
	})
}

// An earlier run left objects of peers that are gone, and there is much of others that looks like ours.
func TestSweep(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		first := start(t, ns)
		first.Replace("", byName(o.network(9)))
		first.inStep()
		first.stop()
		if diff := cmp.Diff(wantsOf(o, 1, 2, 3, 4, 5, 6, 7, 8, 9), kernelHas(t, ns, o)); diff != "" {
			t.Errorf("after the run (-want +got):\n%s", diff)
		}
		nstest.Sh(t, ns, fmt.Sprintf(`
ip route add %s via %s dev %s onlink proto 111 metric 77       # of a version that spread otherwise
ip route append %[4]s via %[5]s dev %[3]s onlink proto 111 metric %[6]d # a second nexthop
bridge fdb append %[7]s dev %[3]s dst %[8]s self permanent`,
			o.subnet(1), o.subnet(1).Addr(), o.link.Name, o.subnet(2), o.subnet(3).Addr(), metric(o.subnet(2)), peerMAC(1), o.vtep(50)))

		second := start(t, ns)
		second.Replace("", byName(o.network(3)))
		second.inStep()
		second.has(o, 1, 2, 3)
		if s := second.Status(); len(s.Healed) > 0 {
			t.Errorf("healed %v in the first audit", s.Healed)
		}
	})
}

func TestForeignObjectsStay(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		nstest.Sh(t, ns, fmt.Sprintf(`
ip link add vx9 up type vxlan id 9 dstport 4789 local %[1]s dev eth0
ip link add br0 up type bridge
ip link add overlay.77 up type bridge # the name is not enough
ip link add overlay.78 type vxlan id 78 dstport 4790 local %[1]s remote %[4]s dev eth0
ip link add overlay.79 up type vxlan id 80 dstport 4791 local %[1]s dev eth0
ip neighbour add %[2]s lladdr 02:00:00:00:00:99 nud permanent dev vx9
ip neighbour add %[4]s lladdr 02:00:00:00:00:99 nud permanent dev eth0
bridge fdb add 02:00:00:00:00:99 dev vx9 dst %[4]s self permanent
ip address add %[2]s/%[5]d dev br0 nodad
until { ip -4 route show table local; ip -6 route show table local; } | grep -q '^local %[2]s '; do :; done
ip route add %[3]s via %[4]s dev eth0                 # as flannel's host-gw routes look, to nobody we know
ip route add %[6]s via %[8]s dev vx9 onlink           # as flannel's vxlan routes look, on another link
ip route add %[7]s via %[4]s dev eth0 proto static metric 50
`, o.link.Local, o.subnet(200).Addr(), o.subnet(201), o.hostgw(99), o.subnet(200).Bits(), o.subnet(202), o.subnet(203), o.subnet(202).Addr()))
		before := dumpOf(t, ns)
		r := start(t, ns)
		r.Replace("", byName(o.network(3)))
		r.inStep()
		r.Replace("", nil)
		r.inStep()
		sameDump(t, before, dumpOf(t, ns))
		r.stop()
		if _, err := Cleanup(t.Context(), Config{Namespace: ns}); err != nil {
			t.Error(err)
		}
		sameDump(t, before, dumpOf(t, ns))
	})
}

// A link of our name that is none of ours is not touched, and said so.
func TestForeignLinkOfOurName(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		nstest.Sh(t, ns, fmt.Sprintf("ip link add %s up type bridge", o.link.Name))
		before := dumpOf(t, ns)
		r := start(t, ns)
		r.Replace("", byName(o.network(3)))
		r.until("failed", func(s Status) bool { return s.Pending == 0 && len(s.Failed) == 1 && s.Failed[0].Owner == "self" })
		sameDump(t, before, dumpOf(t, ns))
		nstest.Sh(t, ns, fmt.Sprintf("ip link del %s", o.link.Name))
		r.inStep()
		r.has(o, 1, 2, 3)
	})
}

func TestOneBadObject(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		r := start(t, ns)
		all := o.network(1000)
		bad := Route{Dst: o.subnet(500), Via: o.subnet(5).Addr(), Link: "eth0"} // nobody knows the way to Via
		all["peer500"] = []Object{bad}
		r.Replace("", byName(all))
		r.until("done but for one", func(s Status) bool { return s.Pending == 0 && len(s.Failed) == 1 })
		f := r.Status().Failed[0]
		if f.Owner != "peer500" || f.Object != bad.String() || !errors.Is(f.Err, unix.ENETUNREACH) && !errors.Is(f.Err, unix.EHOSTUNREACH) {
			t.Errorf("failed: %+v", f)
		}
		if o.link.Local.Is4() && !strings.Contains(f.Err.Error(), "(Nexthop has invalid gateway)") {
			t.Errorf("error %q lacks the kernel's explanation", f.Err)
		}
		if n := strings.Count(nstest.Sh(t, ns, "ip route show proto 111; ip -6 route show proto 111"), "\n"); n != 999 {
			t.Errorf("%d routes, want 999", n)
		}
		if lines := r.log.lines("not programmed"); len(lines) != 1 {
			t.Errorf("log: %q, want one line", lines)
		}
		nstest.Sh(t, ns, fmt.Sprintf("ip route add %s dev eth0", o.subnet(5).Addr()))
		r.inStep()
	})
}

// Objects with the MTU that the underlay does not allow are said to fail, not made otherwise in silence.
func TestImpossibleMTU(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		r := start(t, testHost(t))
		o.link.MTU = 1500
		r.Replace("", []Claim{{"self", []Object{o.link}}})
		r.until("failed", func(s Status) bool { return len(s.Failed) == 1 && errors.Is(s.Failed[0].Err, unix.EINVAL) })
		o.link.MTU = 1400
		r.Replace("", []Claim{{"self", []Object{o.link}}})
		r.inStep()
	})
}

// Changes to a link that the kernel makes in place keep what stands on it; others come with a new link.
func TestLinkChanges(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		index := func() string { return strings.SplitN(nstest.Sh(t, ns, "ip -o link show dev "+o.link.Name), ":", 2)[0] }
		r := start(t, ns)
		r.Replace("", byName(o.network(3)))
		r.inStep()
		first := index()

		o.link.MAC, o.link.MTU, o.link.Learning, o.link.Local = MAC{2, 0, 0, 0, 0, 9}, 1400, true, o.hostgw(9)
		r.Update("", []Claim{{"self", o.self()}})
		r.inStep()
		r.has(o, 1, 2, 3)
		if got := index(); got != first {
			t.Errorf("link has index %s instead of %s: was made anew", got, first)
		}

		o.link.GBP, o.link.Port = true, 4789
		r.Update("", []Claim{{"self", o.self()}})
		r.inStep()
		r.has(o, 1, 2, 3)
		if index() == first {
			t.Error("link was not made anew")
		}
		if s := r.Status(); len(s.Healed) > 0 {
			t.Errorf("healed %v though nobody else changed anything", s.Healed)
		}
	})
}

// What the objects print is what makes them.
func TestStringsMakeObjects(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		var script strings.Builder
		for _, object := range append(o.self(), o.peer(1)...) {
			fmt.Fprintln(&script, object)
		}
		nstest.Sh(t, ns, script.String())
		r := start(t, ns)
		before := dumpOf(t, ns)
		r.Replace("", byName(o.network(1)))
		r.inStep()
		sameDump(t, before, dumpOf(t, ns))
	})
}

func TestNew(t *testing.T) {
	t.Parallel()
	ns := testHost(t)
	r := start(t, ns)
	r.Update("", []Claim{{"self", overlays()[0].self()}})
	if s := r.Status(); s.InStep {
		t.Errorf("in step before the first Replace: %+v", s)
	}
	r.Replace("", nil)
	r.inStep()
	if out := nstest.Sh(t, ns, "ip link"); strings.Contains(out, "overlay") {
		t.Errorf("an Update before the first Replace took effect: %s", out)
	}
}
