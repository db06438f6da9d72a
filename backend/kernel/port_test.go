package kernel

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// ports are the links with their ports, and by which port peer 1 is reached: 0 is that of the link.
func ports(t *testing.T, ns netns.NsHandle, o overlay) string {
	t.Helper()
	return nstest.Sh(t, ns, fmt.Sprintf(`
ip -d -o link show type vxlan | sed -E 's/^([0-9]+): ([^:]*):.* dstport ([0-9]+) .*/\1 \2 \3/' | sort
bridge fdb show dev %s | sed -nE 's/^%s.* port ([0-9]+) .*/peer \1/p'`, o.link.Name, peerMAC(1)))
}

// after is the network o after it was another of which only the port differs: the link of that one receives beside the
// new one, and peer 1 has not followed.
func (o overlay) after(was overlay) map[string][]Object {
	next := o.network(2)
	fdb := next["peer1"][1].(FDB)
	fdb.Port = was.link.Port
	next["peer1"][1] = fdb
	next["retired"] = was.self()
	return next
}

// The old link of a network that changes its port stays as it is, with its name, and is the network's again where the
// change is undone. Nothing of that is taken for the deed of others, and the new link is found after a restart.
func TestAnotherPort(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		next := o
		next.link.Port = 4789
		next.link = next.link.Aside()
		next.own.Link = next.link.Name
		r := startWith(t, o, 2)
		ns := r.ns
		var first int
		fmt.Sscan(ports(t, ns, o), &first)

		r.Replace("", byName(next.after(o)))
		r.inStep()
		links := fmt.Sprintf("%d %s 8472\n%d %s 4789\n", first, o.link.Name, first+1, next.link.Name)
		if got, want := ports(t, ns, next), links+"peer 8472\n"; got != want {
			t.Errorf("after the change:\n%swant:\n%s", got, want)
		}
		r.Replace("", byName(o.after(next)))
		r.inStep()
		if got, want := ports(t, ns, o), links+"peer 4789\n"; got != want {
			t.Errorf("after it is undone:\n%swant:\n%s", got, want)
		}
		for kind, n := range r.Status().Healed {
			if n > 0 {
				t.Errorf("%d of kind %s healed", n, kind)
			}
		}
		r.stop()
		all, err := Links(ns)
		if err != nil || !slices.ContainsFunc(all, func(e Existing) bool {
			v, ok := e.Link.(VXLAN)
			return ok && v.Name == next.link.Name && v.Port == 4789 && v.MAC == o.link.MAC
		}) {
			t.Errorf("there are %v, %v; want %s", all, err, next.link)
		}
		again := start(t, ns) // which knows nothing of the past
		again.Replace("", byName(o.network(2)))
		again.inStep()
		again.has(o, 1, 2)
		if got, want := ports(t, ns, o), fmt.Sprintf("%d %s 8472\n", first, o.link.Name); got != want {
			t.Errorf("after a restart: %q, want %q", got, want)
		}
	})
}

// A route that goes to another link is never away: IPv6 refuses to replace it as IPv4 does.
func TestRouteGoesToAnotherLink(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		r := startWith(t, o, 3)
		ns := r.ns
		log := t.TempDir() + "/monitor"
		nstest.Sh(t, ns, fmt.Sprintf("ip monitor route >%s 2>&1 & echo $! >%[1]s.pid; sleep 0.2", log))
		defer nstest.Sh(t, ns, fmt.Sprintf("kill $(cat %s.pid)", log))
		next := o
		next.link.Name, next.own.Link, next.link.VNI = strings.Replace(o.link.Name, ".1", ".2", 1), strings.Replace(o.own.Link, ".1", ".2", 1), 2
		moved := next.network(3)
		moved["retired"] = o.self()
		r.Replace("", byName(moved))
		r.inStep()
		r.has(next, 1, 2, 3)
		nstest.Sh(t, ns, fmt.Sprintf("ip route add blackhole 203.0.113.0/24; until grep -q blackhole %s; do sleep 0.01; done", log))
		if out := nstest.Sh(t, ns, fmt.Sprintf("grep '^Deleted.*/' %s | grep -v 'proto kernel' || true", log)); out != "" {
			t.Errorf("routes that were away:\n%s", out)
		}
		if out := nstest.Sh(t, ns, "cat "+log); !strings.Contains(out, " dev "+next.link.Name) {
			t.Errorf("nothing was seen: the test tests nothing:\n%s", out)
		}
	})
}

// A route that leads into another link as it is, and no more to a gateway, is never away either: a host that is reached by
// wireguard, and was by vxlan.
func TestRouteGoesIntoAnotherLink(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		r := startWith(t, o, 1)
		log := t.TempDir() + "/monitor"
		nstest.Sh(t, r.ns, fmt.Sprintf("ip monitor route >%s 2>&1 & echo $! >%[1]s.pid; sleep 0.2", log))
		defer nstest.Sh(t, r.ns, fmt.Sprintf("kill $(cat %s.pid)", log))
		there := Route{Dst: o.subnet(1), Link: "eth0"}
		for range 2 {
			r.Update("", []Claim{{"peer1", append(o.peer(1)[:2:2], there)}})
			r.inStep()
			if out := nstest.Sh(t, r.ns, "ip route show proto 111; ip -6 route show proto 111"); !strings.Contains(out, o.subnet(1).String()+" dev eth0") || strings.Count(out, "\n") != 1 {
				t.Errorf("routes %s", out)
			}
			r.Update("", []Claim{{"peer1", o.peer(1)}})
			r.inStep()
			r.has(o, 1)
		}
		nstest.Sh(t, r.ns, fmt.Sprintf("ip route add blackhole 203.0.113.0/24; until grep -q blackhole %s; do sleep 0.01; done", log))
		if out := nstest.Sh(t, r.ns, fmt.Sprintf("grep '^Deleted.*/' %s | grep -v 'proto kernel' || true", log)); out != "" {
			t.Errorf("routes that were away:\n%s", out)
		}
	})
}

// A link that is to be bound to no uplink is, also one that was bound before, and the other way round.
func TestLinkOfNoUplink(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		r := start(t, ns)
		for i, underlay := range []string{"", "eth0", ""} {
			o.link.Underlay = underlay
			r.Replace("", byName(o.network(1)))
			r.inStep()
			out := nstest.Sh(t, ns, "ip -d link show "+o.link.Name)
			if bound := strings.Contains(out, " dev eth0 "); bound != (underlay != "") {
				t.Errorf("step %d: bound to eth0: %v: %s", i, bound, out)
			}
		}
		nstest.Sh(t, ns, "ip link delete "+o.link.Name)
		r.healedTo(KindLink, 1)
	})
}
