package kernel

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// keysOf are the pending objects of all kinds: + to be put, - to be removed.
func keysOf(c *claims) []string {
	var s []string
	for _, t := range c.trackers {
		for _, e := range t.take(put) {
			s = append(s, "+ "+e.want.String())
		}
		for _, e := range t.take(remove) {
			s = append(s, "- "+e.had.String())
		}
	}
	slices.Sort(s)
	return s
}

// programAll says that the kernel is in step.
func programAll(c *claims) {
	for _, t := range c.trackers {
		for _, e := range append(t.take(put), t.take(remove)...) {
			t.done(e)
		}
	}
}

// waitingFor are the owners that wait for their turn.
func waitingFor(c *claims) []string {
	var s []string
	for _, t := range c.trackers {
		for _, f := range t.failures(nil) {
			s = append(s, f.Owner)
		}
	}
	slices.Sort(s)
	return s
}

func TestClaims(t *testing.T) {
	t.Parallel()
	to := func(gateway string) Object {
		return Route{Dst: netip.MustParsePrefix("10.0.1.0/24"), Via: netip.MustParseAddr(gateway), Link: "eth0"}
	}
	one, two, three := to("192.0.2.1"), to("192.0.2.2"), to("192.0.2.3")
	other := Route{Dst: netip.MustParsePrefix("10.0.2.0/24"), Via: netip.MustParseAddr("192.0.2.1"), Link: "eth0"}
	type owners = map[string][]Object
	for _, test := range []struct {
		name    string
		before  []owners // updates, and all is programmed after each
		last    owners
		pending []string
		waiting []string
	}{
		{
			name: "a conflict waits", before: []owners{{"a": {one}}},
			last: owners{"b": {two}}, waiting: []string{"b"},
		},
		{
			name: "who comes at the same time is taken in order",
			last: owners{"b": {two}, "a": {one}}, pending: []string{"+ " + one.String()}, waiting: []string{"b"},
		},
		{
			name: "a conflict gets its turn", before: []owners{{"a": {one}}, {"b": {two}}},
			last: owners{"a": nil}, pending: []string{"+ " + two.String()},
		},
		{
			name: "of conflicts, the first gets its turn", before: []owners{{"a": {one}}, {"c": {three}}, {"b": {two}}},
			last: owners{"a": nil}, pending: []string{"+ " + three.String()}, waiting: []string{"b"},
		},
		{
			name: "conflicts of one mind get their turn together", before: []owners{{"a": {one}}, {"b": {two}}, {"c": {two}}},
			last: owners{"a": nil}, pending: []string{"+ " + two.String()},
		},
		{
			name: "who changes its mind stays first", before: []owners{{"a": {one}}, {"b": {two}}},
			last: owners{"a": {three}}, pending: []string{"+ " + three.String()}, waiting: []string{"b"},
		},
		{
			name: "a conflict goes", before: []owners{{"a": {one}}, {"b": {two}}},
			last: owners{"b": nil},
		},
		{
			name: "a conflict goes, another stays", before: []owners{{"a": {one}}, {"b": {two}}, {"c": {three}}},
			last: owners{"b": nil}, waiting: []string{"c"},
		},
		{name: "nobody knew it", last: owners{"a": nil}},
		{name: "new", last: owners{"a": {one, other}}, pending: []string{"+ " + one.String(), "+ " + other.String()}},
		{name: "the same again", before: []owners{{"a": {one, other}}}, last: owners{"a": {one, other}}},
		{name: "the same in another order", before: []owners{{"a": {one, other}}}, last: owners{"a": {other, one}}},
		{name: "changed", before: []owners{{"a": {one}}}, last: owners{"a": {two}}, pending: []string{"+ " + two.String()}},
		{name: "gone", before: []owners{{"a": {one}}}, last: owners{"a": {}}, pending: []string{"- " + one.String()}},
		{name: "shared, one goes", before: []owners{{"a": {one}}, {"b": {one}}}, last: owners{"a": nil}},
		{
			name: "shared, both go", before: []owners{{"a": {one}}, {"b": {one}}, {"b": nil}},
			last: owners{"a": nil}, pending: []string{"- " + one.String()},
		},
		{name: "goes to another owner", before: []owners{{"a": {one}}}, last: owners{"a": nil, "b": {one}}},
		{
			name: "goes to another owner and changes", before: []owners{{"a": {one}}},
			last: owners{"a": nil, "b": {two}}, pending: []string{"+ " + two.String()},
		},
		{name: "twice in one owner", before: []owners{{"a": {one, one}}}, last: owners{"a": {one}}},
		{name: "gone and back", before: []owners{{"a": {one}}, {"a": nil}}, last: owners{"a": {one}}, pending: []string{"+ " + one.String()}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newClaims()
			now := owners{}
			for _, u := range append(test.before, test.last) {
				programAll(c)
				c.update("", byName(u))
				maps.Copy(now, u)
			}
			if diff := cmp.Diff(test.pending, keysOf(c)); diff != "" {
				t.Errorf("pending (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.waiting, waitingFor(c)); diff != "" {
				t.Errorf("waiting (-want +got):\n%s", diff)
			}
			c.replace("", byName(owners{}))
			for _, tracker := range c.trackers {
				for e := range maps.Values(tracker.entries) {
					tracker.done(e)
				}
			}
			for kind, tracker := range c.trackers {
				if left := len(tracker.entries) + len(tracker.conflicts) + tracker.claimed + tracker.differing; left > 0 {
					t.Errorf("%v: left after all owners went: %+v", Kind(kind), tracker)
				}
			}
			if len(c.owners)+len(c.users) > 0 {
				t.Errorf("left: owners %v, users of links %v", c.owners, c.users)
			}
		})
	}
}

func TestReplaceIsUpdate(t *testing.T) {
	t.Parallel()
	o := overlays()[0]
	c := newClaims()
	c.replace("", byName(o.network(5)))
	programAll(c)
	all := o.network(4)
	all["peer9"] = o.peer(9)
	c.replace("", byName(all))
	var want []string
	for _, object := range o.peer(5) {
		want = append(want, "- "+object.String())
	}
	for _, object := range o.peer(9) {
		want = append(want, "+ "+object.String())
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, keysOf(c)); diff != "" {
		t.Errorf("pending (-want +got):\n%s", diff)
	}
	if got := c.users["overlay.1"]; got != 1+3*5 {
		t.Errorf("%d users of the link, want 16", got)
	}
	if got := c.users["eth0"]; got != 1 {
		t.Errorf("%d users of the underlay, want 1", got)
	}
}

func TestObjectStrings(t *testing.T) {
	t.Parallel()
	var got strings.Builder
	for _, o := range overlays() {
		for _, object := range append(o.self(), o.peer(1)...) {
			got.WriteString(object.String() + "\n")
		}
		got.WriteString(FDB{Link: o.link.Name, MAC: peerMAC(2), Dst: o.vtep(2), Port: 4789}.String() + "\n")
		o.link.GBP, o.link.Learning = true, true
		got.WriteString(o.link.Aside().String() + "\n")
	}
	const want = `ip link add overlay.1 up arp off address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning
ip address replace 10.0.0.0/32 dev overlay.1
ip neighbour replace 10.0.1.0 lladdr 02:01:00:00:00:01 nud permanent dev overlay.1
bridge fdb replace 02:01:00:00:00:01 dev overlay.1 dst 198.18.0.1 self permanent
ip route replace 10.0.1.0/24 via 10.0.1.0 dev overlay.1 onlink proto 111 metric 128560
bridge fdb replace 02:01:00:00:00:02 dev overlay.1 dst 198.18.0.2 port 4789 self permanent
ip link add overlay.p8472 up arp off address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 learning gbp
ip link add overlay6.1 up arp off address 02:00:00:00:06:01 mtu 1430 type vxlan id 1 local 2001:db8::1 dev eth0 dstport 8472 nolearning
ip address replace fd00::/128 dev overlay6.1 nodad
ip neighbour replace fd00:0:0:1:: lladdr 02:01:00:00:00:01 nud permanent dev overlay6.1
bridge fdb replace 02:01:00:00:00:01 dev overlay6.1 dst 2001:db8:100::1 self permanent
ip route replace fd00:0:0:1::/64 via fd00:0:0:1:: dev overlay6.1 onlink proto 111 metric 82850
bridge fdb replace 02:01:00:00:00:02 dev overlay6.1 dst 2001:db8:100::2 port 4789 self permanent
ip link add overlay6.p8472 up arp off address 02:00:00:00:06:01 mtu 1430 type vxlan id 1 local 2001:db8::1 dev eth0 dstport 8472 learning gbp
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The kernel's hash of nexthops sees the metric only: a network's subnets must not share few.
func TestMetricSpreads(t *testing.T) {
	t.Parallel()
	o := overlays()[0]
	n := map[uint32]int{}
	for i := range 60_000 {
		m := metric(o.subnet(i))
		if m < metricBase || m >= metricBase+metricSpread {
			t.Fatalf("metric %d of %s is out of range", m, o.subnet(i))
		}
		n[m]++
	}
	for m, n := range n {
		if n > 60 {
			t.Errorf("%d of 60000 routes have metric %d", n, m)
		}
	}
}
