package enforce

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/policy/compile"
)

// The containers' addresses.
var (
	a4, a6       = ip("10.5.1.2"), ip("fd00:5:0:1::2")
	b4, b6       = ip("10.5.1.3"), ip("fd00:5:0:1::3")
	peer4, peer6 = ip("10.5.2.2"), ip("fd00:5:0:2::2")
)

func tcp80(from ...netip.Addr) (all []compile.Match) {
	for _, a := range from {
		all = append(all, compile.Match{From: a, To: a, Proto: unix.IPPROTO_TCP, First: 80, Last: 80})
	}
	return all
}

func isolate(in, out compile.GroupID, addrs ...netip.Addr) map[netip.Addr]compile.Sides {
	all := map[netip.Addr]compile.Sides{}
	for _, a := range addrs {
		all[a] = compile.Sides{In: in, Out: out}
	}
	return all
}

// bridged makes a table that sees the bridge, with what is in it.
func bridged(t testing.TB, s site, full compile.Change) *Table {
	t.Helper()
	table := newTable(t, s.host)
	if err := table.Rebuild(t.Context(), full, Options{Unready: Closed}); err != nil {
		t.Fatal(err)
	}
	if shown, err := table.Bridge("br0", true); err != nil || shown.Routed != (os.Getenv(unseenEnv) != "") {
		t.Fatal(err)
	}
	return table
}

// a lets b in at TCP 80 only; others are as before, and its host reaches it.
func TestIngress(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var open []probe
	for _, network := range []string{"tcp", "udp"} {
		open = slices.Concat(open, both(s.b, network, "10.5.1.2", "fd00:5:0:1::2", "80", true), both(s.peer, network, "10.5.1.2", "fd00:5:0:1::2", "81", true))
	}
	probes(t, "no table", open)
	table := bridged(t, s, compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": tcp80(b4, b6)},
		Set:  isolate("i1", "", a4, a6),
	})
	denied := slices.Concat(
		both(s.b, "tcp", "10.5.1.2", "fd00:5:0:1::2", "80", true),
		both(s.b, "tcp", "10.5.1.2", "fd00:5:0:1::2", "81", false),
		both(s.b, "udp", "10.5.1.2", "fd00:5:0:1::2", "80", false),
		both(s.b, "icmp", "10.5.1.2", "fd00:5:0:1::2", "", false),
		both(s.peer, "tcp", "10.5.1.2", "fd00:5:0:1::2", "80", false),
		both(s.peer, "icmp", "10.5.1.2", "fd00:5:0:1::2", "", false),
		both(s.host, "tcp", "10.5.1.2", "fd00:5:0:1::2", "81", true),
		both(s.host, "icmp", "10.5.1.2", "fd00:5:0:1::2", "", true),
		both(s.a, "tcp", "10.5.1.2", "fd00:5:0:1::2", "81", true),
		both(s.a, "udp", "10.5.1.3", "fd00:5:0:1::3", "80", true),
		both(s.a, "tcp", "10.5.2.2", "fd00:5:0:2::2", "80", true),
		both(s.a, "icmp", "10.5.1.1", "fd00:5:0:1::1", "", true),
		both(s.b, "udp", "10.5.2.2", "fd00:5:0:2::2", "80", true),
	)
	probes(t, "ingress", denied)
	packets, err := Dropped(s.host, "")
	if err != nil || packets[deniedIn] == 0 || packets[deniedOut] != 0 {
		t.Errorf("counted %v, %v", packets, err)
	}
	if err := table.Apply(t.Context(), compile.Change{Add: map[compile.GroupID][]compile.Match{"i1": {{}}}}); err != nil {
		t.Fatal(err)
	}
	probes(t, "everybody added", open)
	if err := table.Apply(t.Context(), compile.Change{Remove: map[compile.GroupID][]compile.Match{"i1": {{}}}}); err != nil {
		t.Fatal(err)
	}
	probes(t, "and removed", denied)
	if err := table.Apply(t.Context(), compile.Change{Set: isolate("", "", a4, a6), Drop: []compile.GroupID{"i1"}}); err != nil {
		t.Fatal(err)
	}
	probes(t, "not isolated any more", open)
}

// a may send to b at TCP 80 only: not to its host, either.
func TestEgress(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	table := bridged(t, s, compile.Change{
		Make: map[compile.GroupID][]compile.Match{"e1": tcp80(b4, b6)},
		Set:  isolate("", "e1", a4, a6),
	})
	probes(t, "egress", slices.Concat(
		both(s.a, "tcp", "10.5.1.3", "fd00:5:0:1::3", "80", true),
		both(s.a, "tcp", "10.5.1.3", "fd00:5:0:1::3", "81", false),
		both(s.a, "udp", "10.5.1.3", "fd00:5:0:1::3", "80", false),
		both(s.a, "icmp", "10.5.1.3", "fd00:5:0:1::3", "", false),
		both(s.a, "tcp", "10.5.2.2", "fd00:5:0:2::2", "80", false),
		both(s.a, "tcp", "10.5.1.1", "fd00:5:0:1::1", "80", false),
		both(s.a, "icmp", "10.5.1.1", "fd00:5:0:1::1", "", false),
		both(s.host, "tcp", "10.5.1.2", "fd00:5:0:1::2", "81", true),
		both(s.host, "icmp", "10.5.1.2", "fd00:5:0:1::2", "", true),
		both(s.b, "tcp", "10.5.1.2", "fd00:5:0:1::2", "81", true),
		both(s.peer, "udp", "10.5.1.2", "fd00:5:0:1::2", "80", true),
	))
	// b lets nothing in: what a may send is of no use.
	err := table.Apply(t.Context(), compile.Change{Make: map[compile.GroupID][]compile.Match{"i2": nil}, Set: isolate("i2", "", b4, b6)})
	if err != nil {
		t.Fatal(err)
	}
	probes(t, "ingress of the other", both(s.a, "tcp", "10.5.1.3", "fd00:5:0:1::3", "80", false))
}
