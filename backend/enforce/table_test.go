package enforce

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/policy/compile"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// newTable makes one in ns, and runs it.
func newTable(t testing.TB, ns netns.NsHandle) *Table {
	t.Helper()
	table, err := New(Config{Namespace: ns, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	nstest.Run(t, table.Run)
	return table
}

// matches are one of every kind.
func matches() (all []compile.Match) {
	for _, from := range []string{"", "10.5.9.9", "fd00:5::9"} {
		for _, ports := range [][3]uint16{{}, {unix.IPPROTO_TCP}, {unix.IPPROTO_UDP, 53, 53}, {unix.IPPROTO_TCP, 8000, 8080}} {
			m := compile.Match{Proto: uint8(ports[0]), First: ports[1], Last: ports[2]}
			if from != "" {
				m.From, m.To = ip(from), ip(from)
			}
			all = append(all, m)
		}
	}
	for _, block := range [][2]string{{"10.6.0.0", "10.6.255.255"}, {"10.6.7.0", "10.7.0.255"}, {"0.0.0.0", "9.255.255.255"}, {"192.0.2.0", "255.255.255.255"}, {"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, {"fd00:6::", "fd00:6::ffff"}} {
		for _, ports := range [][3]uint16{{}, {unix.IPPROTO_TCP}, {unix.IPPROTO_UDP, 53, 53}, {unix.IPPROTO_TCP, 8000, 8080}} {
			all = append(all, compile.Match{From: ip(block[0]), To: ip(block[1]), Proto: uint8(ports[0]), First: ports[1], Last: ports[2]})
		}
	}
	return all
}

// nft reads all that it prints of the tables, and prints it again.
func TestNftReads(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	table := newTable(t, ns)
	full := compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": matches(), "e1": matches(), "i2": nil},
		Set:  map[netip.Addr]compile.Sides{ip("10.5.1.2"): {In: "i1", Out: "e1"}, ip("fd00:5::2"): {In: "i1"}, ip("10.5.1.3"): {In: "i2"}},
	}
	if err := table.Rebuild(t.Context(), full, Options{Unready: Fail, LogDenied: true}); err != nil {
		t.Fatal(err)
	}
	before := nstest.Sh(t, ns, "nft list ruleset")
	t.Log(before)
	if after := nstest.Sh(t, nstest.New(t), "cat <<'end' | nft -f -\n"+before+"\nend\nnft list ruleset"); after != before {
		t.Errorf("got %s", after)
	}
}
