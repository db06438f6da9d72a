package ports

import (
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var port = Port{
	Index: 7, MAC: net.HardwareAddr{0x0a, 0xff, 10, 5, 72, 2},
	Addrs:   []netip.Addr{netip.MustParseAddr("10.5.72.2"), netip.MustParseAddr("fc00:7::2")},
	Allowed: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/16"), netip.MustParsePrefix("10.9.7.0/24"), netip.MustParsePrefix("2001:db8::/32")},
}

func TestElements(t *testing.T) {
	t.Parallel()
	var got []string
	for _, e := range port.Elements() {
		first, last := ends(e.Key)
		if e.Index() != 7 {
			t.Errorf("%s: index %d", e.Set, e.Index())
		}
		got = append(got, strings.TrimSpace(e.Set+" "+hex.EncodeToString([]byte(first))+" "+hex.EncodeToString([]byte(last))))
	}
	const mac = "0aff0a0548020000"
	want := []string{
		"ports 07000000",
		"own4 07000000" + mac + "0a054802",
		"own6 07000000" + mac + "fc000007000000000000000000000002",
		"target6 07000000" + mac + "fc000007000000000000000000000002",
		"own6 07000000" + mac + "fe8000000000000008ff0afffe054802",
		"target6 07000000" + mac + "fe8000000000000008ff0afffe054802",
		"allowed4 00000007" + mac + "0a090000 00000007" + mac + "0a09ffff",
		"allowed6 00000007" + mac + "20010db8000000000000000000000000 00000007" + mac + "20010db8ffffffffffffffffffffffff",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("on a little-endian machine (-want +got):\n%s", diff)
	}
	if got := (Port{Index: 7, Routed: true}).Elements(); len(got) != 1 || got[0] != (Element{"routed", "\x07\x00\x00\x00"}) {
		t.Errorf("routed: %q", got)
	}
}

// nft takes the rules, also as it prints them.
func TestRules(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	for _, family := range []string{"bridge", "inet"} {
		file := t.TempDir() + "/rules"
		cmd := exec.Command("unshare", "--net", "sh", "-c", `nft -f - && nft list ruleset >"$1" && nft flush ruleset && nft -f "$1"`, "sh", file)
		cmd.Stdin = strings.NewReader("add table " + family + " overlayd\n" + strings.Join(Rules(family), "\n") + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", family, err, out)
		}
	}
}

// Where nothing is guarded there is nothing to do.
func TestAddNowhere(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, p := range []Port{port, {Index: 7, Routed: true}} {
		if Guarded(p) {
			t.Skip("this host is guarded")
		}
		if err := Add(p); err != nil {
			t.Error(err)
		}
	}
}
