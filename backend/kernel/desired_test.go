package kernel

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// keysOf are the dirty items of all kinds: + to be put, - to be removed.
func keysOf(d *desired) []string {
	var s []string
	for _, t := range d.tables {
		for _, it := range t.take(put) {
			s = append(s, "+ "+it.value.String())
		}
		for _, it := range t.take(remove) {
			s = append(s, "- "+it.value.String())
		}
	}
	slices.Sort(s)
	return s
}

// programAll says that the kernel is in step.
func programAll(d *desired) {
	for _, t := range d.tables {
		for _, it := range append(t.take(put), t.take(remove)...) {
			t.settle(it)
		}
	}
}

// rivalsOf are the owners that wait for their turn.
func rivalsOf(d *desired) []string {
	var s []string
	for _, t := range d.tables {
		for _, f := range t.failed(nil) {
			s = append(s, f.Owner)
		}
	}
	slices.Sort(s)
	return s
}

func TestDesired(t *testing.T) {
	t.Parallel()
	to := func(gateway string) Object {
		return Route{Dst: netip.MustParsePrefix("10.0.1.0/24"), Via: netip.MustParseAddr(gateway), Link: "eth0"}
	}
	one, two, three := to("192.0.2.1"), to("192.0.2.2"), to("192.0.2.3")
	other := Route{Dst: netip.MustParsePrefix("10.0.2.0/24"), Via: netip.MustParseAddr("192.0.2.1"), Link: "eth0"}
	type owners = map[string][]Object
	for _, test := range []struct {
		name   string
		before []owners // updates, and all is programmed after each
		last   owners
		dirty  []string
		rivals []string
	}{
		{
			name: "a rival waits", before: []owners{{"a": {one}}},
			last: owners{"b": {two}}, rivals: []string{"b"},
		},
		{
			name: "who comes at the same time is taken in order",
			last: owners{"b": {two}, "a": {one}}, dirty: []string{"+ " + one.String()}, rivals: []string{"b"},
		},
		{
			name: "a rival gets its turn", before: []owners{{"a": {one}}, {"b": {two}}},
			last: owners{"a": nil}, dirty: []string{"+ " + two.String()},
		},
		{
			name: "of rivals, the first gets its turn", before: []owners{{"a": {one}}, {"c": {three}}, {"b": {two}}},
			last: owners{"a": nil}, dirty: []string{"+ " + three.String()}, rivals: []string{"b"},
		},
		{
			name: "rivals of one mind get their turn together", before: []owners{{"a": {one}}, {"b": {two}}, {"c": {two}}},
			last: owners{"a": nil}, dirty: []string{"+ " + two.String()},
		},
		{
			name: "who changes its mind stays first", before: []owners{{"a": {one}}, {"b": {two}}},
			last: owners{"a": {three}}, dirty: []string{"+ " + three.String()}, rivals: []string{"b"},
		},
		{
			name: "a rival goes", before: []owners{{"a": {one}}, {"b": {two}}},
			last: owners{"b": nil},
		},
		{
			name: "a rival goes, another stays", before: []owners{{"a": {one}}, {"b": {two}}, {"c": {three}}},
			last: owners{"b": nil}, rivals: []string{"c"},
		},
		{name: "nobody knew it", last: owners{"a": nil}},
		{name: "new", last: owners{"a": {one, other}}, dirty: []string{"+ " + one.String(), "+ " + other.String()}},
		{name: "the same again", before: []owners{{"a": {one, other}}}, last: owners{"a": {one, other}}},
		{name: "the same in another order", before: []owners{{"a": {one, other}}}, last: owners{"a": {other, one}}},
		{name: "changed", before: []owners{{"a": {one}}}, last: owners{"a": {two}}, dirty: []string{"+ " + two.String()}},
		{name: "gone", before: []owners{{"a": {one}}}, last: owners{"a": {}}, dirty: []string{"- " + one.String()}},
		{name: "shared, one goes", before: []owners{{"a": {one}}, {"b": {one}}}, last: owners{"a": nil}},
		{
			name: "shared, both go", before: []owners{{"a": {one}}, {"b": {one}}, {"b": nil}},
			last: owners{"a": nil}, dirty: []string{"- " + one.String()},
		},
		{name: "goes to another owner", before: []owners{{"a": {one}}}, last: owners{"a": nil, "b": {one}}},
		{
			name: "goes to another owner and changes", before: []owners{{"a": {one}}},
			last: owners{"a": nil, "b": {two}}, dirty: []string{"+ " + two.String()},
		},
		{name: "twice in one owner", before: []owners{{"a": {one, one}}}, last: owners{"a": {one}}},
		{name: "gone and back", before: []owners{{"a": {one}}, {"a": nil}}, last: owners{"a": {one}}, dirty: []string{"+ " + one.String()}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := newDesired()
			now := owners{}
			for _, u := range append(test.before, test.last) {
				programAll(d)
				d.update(byName(u))
				maps.Copy(now, u)
			}
			if diff := cmp.Diff(test.dirty, keysOf(d)); diff != "" {
				t.Errorf("dirty (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.rivals, rivalsOf(d)); diff != "" {
				t.Errorf("rivals (-want +got):\n%s", diff)
			}
			d.replace(byName(owners{}))
			for _, table := range d.tables {
				for it := range maps.Values(table.items) {
					table.settle(it)
				}
			}
			for kind, table := range d.tables {
				if len(table.items)+len(table.rivals)+table.claimed > 0 || table.count != [states]int{} {
					t.Errorf("%v: left after all owners went: %v", Kind(kind), table)
				}
			}
			if len(d.owners)+len(d.users) > 0 {
				t.Errorf("left: owners %v, users of links %v", d.owners, d.users)
			}
		})
	}
}

func TestReplaceIsUpdate(t *testing.T) {
	t.Parallel()
	o := overlays()[0]
	d := newDesired()
	d.replace(byName(o.network(5)))
	programAll(d)
	all := o.network(4)
	all["peer9"] = o.peer(9)
	d.replace(byName(all))
	var want []string
	for _, object := range o.peer(5) {
		want = append(want, "- "+object.String())
	}
	for _, object := range o.peer(9) {
		want = append(want, "+ "+object.String())
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, keysOf(d)); diff != "" {
		t.Errorf("dirty (-want +got):\n%s", diff)
	}
	if got := d.users["overlay.1"]; got != 1+3*5 {
		t.Errorf("%d users of the link, want 16", got)
	}
	if got := d.users["eth0"]; got != 1 {
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
	const want = `ip link add overlay.1 up address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning
ip address replace 10.0.0.0/32 dev overlay.1
ip neighbour replace 10.0.1.0 lladdr 02:01:00:00:00:01 nud permanent dev overlay.1
bridge fdb replace 02:01:00:00:00:01 dev overlay.1 dst 198.18.0.1 self permanent
ip route replace 10.0.1.0/24 via 10.0.1.0 dev overlay.1 onlink proto 111 metric 128560
bridge fdb replace 02:01:00:00:00:02 dev overlay.1 dst 198.18.0.2 port 4789 self permanent
ip link add overlay.p8472 up address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 learning gbp
ip link add overlay6.1 up address 02:00:00:00:06:01 mtu 1430 type vxlan id 1 local 2001:db8::1 dev eth0 dstport 8472 nolearning
ip address replace fd00::/128 dev overlay6.1 nodad
ip neighbour replace fd00:0:0:1:: lladdr 02:01:00:00:00:01 nud permanent dev overlay6.1
bridge fdb replace 02:01:00:00:00:01 dev overlay6.1 dst 2001:db8:100::1 self permanent
ip route replace fd00:0:0:1::/64 via fd00:0:0:1:: dev overlay6.1 onlink proto 111 metric 82850
bridge fdb replace 02:01:00:00:00:02 dev overlay6.1 dst 2001:db8:100::2 port 4789 self permanent
ip link add overlay6.p8472 up address 02:00:00:00:06:01 mtu 1430 type vxlan id 1 local 2001:db8::1 dev eth0 dstport 8472 learning gbp
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
