package firewall

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

var (
	net4 = netip.MustParsePrefix("10.5.0.0/16")
	net6 = netip.MustParsePrefix("fd00:5::/48")
)

// apply applies, and fails the test where that did not change so many places.
func apply(t *testing.T, f *firewall, places int, want ...Rule) {
	t.Helper()
	changed, err := f.apply(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if changed != places {
		t.Errorf("%d places changed, want %d", changed, places)
	}
}

func TestMasqueradeObject(t *testing.T) {
	t.Parallel()
	m := Masquerade{net6}
	want := "nft 'add chain inet overlayd postrouting { type nat hook postrouting priority srcnat; }'\n" +
		"nft add rule inet overlayd postrouting ip6 saddr fd00:5::/48 ip6 daddr != fd00:5::/48 ip6 daddr != ff00::/8 masquerade fully-random"
	if got := m.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestChangeTable(t *testing.T) {
	t.Parallel()
	const (
		none  = "add table inet overlayd\ndelete table inet overlayd\n"
		empty = "add table inet overlayd\nflush table inet overlayd\n"
		chain = `add chain inet overlayd postrouting { type nat hook postrouting priority srcnat; }
`
		rule4 = "add rule inet overlayd postrouting ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 ip daddr != 224.0.0.0/4 ip daddr != 255.255.255.255 masquerade fully-random\n"
		rule6 = "add rule inet overlayd postrouting ip6 saddr fd00:5::/48 ip6 daddr != fd00:5::/48 ip6 daddr != ff00::/8 masquerade fully-random\n"
	)
	for _, tt := range []struct {
		name, now string
		rules     []Rule
		want      string
	}{
		{"no rules, no table", "table inet overlayd {\n}\n", nil, none},
		{"both families", "", []Rule{Masquerade{net4}, Masquerade{net6}}, empty + chain + rule4 + rule6},
		{"what is there", "table inet overlayd {\n\tcounter old {\n\t}\n\n\tset old {\n\t\ttype inet_service\n\t}\n\n\tchain postrouting {\n\t}\n}\n", []Rule{Masquerade{net4}}, `add table inet overlayd
flush table inet overlayd
delete counter inet overlayd old
delete set inet overlayd old
delete chain inet overlayd postrouting
` + chain + rule4},
	} {
		inet := table{family: "inet"}
		if diff := cmp.Diff(tt.want, inet.change(tt.now, linesOf(tt.rules))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestFirewallWithoutCommands(t *testing.T) {
	f := newFirewall(nstest.New(t))
	t.Setenv("PATH", t.TempDir())
	apply(t, f, 0)
	apply(t, f, 0, Accept{net4}, Accept{net6}) // no iptables: no chain that could drop
	_, err := f.apply(t.Context(), []Rule{Masquerade{net4}})
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "install the package nftables") {
		t.Errorf("no nft: got %v", err)
	}
	apply(t, f, 0)
}

func TestFirewallDrift(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	f := newFirewall(ns)
	desired := []Rule{Masquerade{net6}, Masquerade{net4}}
	apply(t, f, 1, desired...)
	want := nstest.Sh(t, ns, "nft list table inet overlayd")
	for _, tt := range []struct{ name, script string }{
		{"table deleted", "nft delete table inet overlayd"},
		{"all flushed", "nft flush ruleset"},
		{"a rule added", "nft insert rule inet overlayd postrouting accept"},
		{"a rule replaced", `handle=$(nft -a list table inet overlayd | sed -n 's/.*saddr 10.5.* handle //p')
			nft replace rule inet overlayd postrouting handle $handle accept`},
	} {
		apply(t, f, 0, desired...)
		nstest.Sh(t, ns, tt.script)
		t.Log(tt.name)
		apply(t, f, 1, desired...)
		if diff := cmp.Diff(want, nstest.Sh(t, ns, "nft list table inet overlayd")); diff != "" {
			t.Errorf("%s: healed (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestFirewallEarlierRun(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	nstest.Sh(t, ns, `nft add table inet overlayd; nft add chain inet overlayd stale; nft add table inet foreign
		iptables -A FORWARD -j DROP`)
	foreign := nstest.Sh(t, ns, "nft list table inet foreign; iptables -S")
	apply(t, newFirewall(ns), 2, Masquerade{netip.MustParsePrefix("10.9.0.0/16")}, Accept{netip.MustParsePrefix("10.9.0.0/16")})

	f := newFirewall(ns)
	apply(t, f, 2, Masquerade{net4}, Accept{net4})
	all := nstest.Sh(t, ns, "nft list ruleset; iptables -S")
	if strings.Contains(all, "stale") || strings.Contains(all, "10.9.") {
		t.Errorf("something is left of the earlier run:\n%s", all)
	}
	before := nstest.Sh(t, ns, "nft -a list ruleset")
	apply(t, f, 0, Accept{net4}, Masquerade{net4})
	if diff := cmp.Diff(before, nstest.Sh(t, ns, "nft -a list ruleset")); diff != "" {
		t.Errorf("an identical apply wrote (-before +after):\n%s", diff)
	}

	for _, want := range []bool{true, false} {
		if found, err := Remove(t.Context(), ns); found != want || err != nil {
			t.Fatalf("removed %t, %v, want %t", found, err, want)
		}
	}
	if diff := cmp.Diff(foreign, nstest.Sh(t, ns, "nft list table inet foreign; iptables -S")); diff != "" {
		t.Errorf("removal touched rules of others (-want +got):\n%s", diff)
	}
	if all := nstest.Sh(t, ns, "nft list ruleset"); strings.Contains(strings.ToLower(all), "overlayd") {
		t.Errorf("something is left:\n%s", all)
	}
}

// stand-ins for iptables and ip6tables of one variant, in a directory for PATH.
func variant(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	for _, command := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-restore"} {
			target, err := exec.LookPath(command + "-" + name + suffix)
			if err != nil {
				t.Skipf("needs both variants of iptables: %v", err)
			}
			if err := os.Symlink(target, filepath.Join(dir, command+suffix)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}
