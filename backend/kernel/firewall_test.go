package kernel

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"
	"sigs.k8s.io/knftables"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

var (
	net4 = netip.MustParsePrefix("10.5.0.0/16")
	net6 = netip.MustParsePrefix("fd00:5::/48")
)

func testFirewall(t *testing.T, ns netns.NsHandle) *firewall {
	t.Helper()
	f, err := newFirewall(ns, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.events.Close)
	return f
}

// drift fails the test where the firewall has drifted by other than the named.
func drift(t *testing.T, f *firewall, want ...string) {
	t.Helper()
	got, err := f.drifted(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("drift (-want +got):\n%s", diff)
	}
}

func apply(t *testing.T, f *firewall, desired ...Object) {
	t.Helper()
	if err := f.apply(t.Context(), desired); err != nil {
		t.Fatal(err)
	}
}

func TestMasqueradeObject(t *testing.T) {
	t.Parallel()
	m := Masquerade{net6}
	if m.Kind() != KindFirewall {
		t.Errorf("kind %v", m.Kind())
	}
	want := "nft add rule inet overlayd postrouting ip6 saddr fd00:5::/48 ip6 daddr != fd00:5::/48 ip6 daddr != ff00::/8 masquerade fully-random"
	if got := m.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestReplaceTable(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		masquerade []Masquerade
		want       string
	}{
		{"no rules, no table", nil, ""},
		{"both families", []Masquerade{{net4}, {net6}}, `add table inet overlayd
add chain inet overlayd postrouting { type nat hook postrouting priority 100 ; }
add rule inet overlayd postrouting ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 ip daddr != 224.0.0.0/4 ip daddr != 255.255.255.255 masquerade fully-random comment "masquerade 10.5.0.0/16"
add rule inet overlayd postrouting ip6 saddr fd00:5::/48 ip6 daddr != fd00:5::/48 ip6 daddr != ff00::/8 masquerade fully-random comment "masquerade fd00:5::/48"
`},
	} {
		fake := knftables.NewFake(knftables.InetFamily, nftTable)
		for range 2 { // where there is no table, and where there is one
			if err := fake.Run(t.Context(), replaceTable(fake.NewTransaction(), tt.masquerade)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, fake.Dump()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.name, diff)
			}
		}
	}
}

func TestFirewallWithoutCommands(t *testing.T) {
	f := testFirewall(t, nstest.New(t))
	t.Setenv("PATH", t.TempDir())
	apply(t, f)
	apply(t, f, Accept{net4}, Accept{net6}) // no iptables: no chain that could drop
	drift(t, f)
	err := f.apply(t.Context(), []Object{Masquerade{net4}})
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "install the package nftables") {
		t.Errorf("no nft: got %v", err)
	}
	drift(t, f, "masquerade 10.5.0.0/16")
	if err := f.remove(t.Context()); err != nil {
		t.Errorf("remove: %v", err)
	}
}

func TestFirewallErrors(t *testing.T) {
	t.Parallel()
	f := testFirewall(t, nstest.New(t))
	if err := f.apply(t.Context(), []Object{Sysctl{"net.ipv4.ip_forward", "1"}}); err == nil {
		t.Error("an object of another kind: no error")
	}
	drift(t, f) // nothing was applied
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.apply(ended, []Object{Masquerade{net4}, Accept{net4}}); !errors.Is(err, context.Canceled) {
		t.Errorf("context ended: got %v", err)
	}
	drift(t, f, "masquerade 10.5.0.0/16", "iptables chain OVERLAYD-FORWARD")
	if err := f.remove(t.Context()); err != nil {
		t.Errorf("remove where there is nothing: %v", err)
	}
}

func TestFirewallDrift(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	f := testFirewall(t, ns)
	desired := []Object{Masquerade{net6}, Masquerade{net4}}
	for _, tt := range []struct {
		name, script string
		want         []string
	}{
		{"table deleted", "nft delete table inet overlayd", []string{"masquerade 10.5.0.0/16", "masquerade fd00:5::/48"}},
		{"all flushed", "nft flush ruleset", []string{"masquerade 10.5.0.0/16", "masquerade fd00:5::/48"}},
		{"a rule added", "nft insert rule inet overlayd postrouting accept", []string{"nft table inet overlayd"}},
		{
			"a rule replaced under its comment",
			`handle=$(nft -a list table inet overlayd | sed -n 's/.*masquerade 10.5.* handle //p')
			nft replace rule inet overlayd postrouting handle $handle accept comment '"masquerade 10.5.0.0/16"'`,
			[]string{"masquerade 10.5.0.0/16"},
		},
	} {
		apply(t, f, desired...)
		drift(t, f)
		want := nstest.Sh(t, ns, "nft list table inet overlayd")
		nstest.Sh(t, ns, tt.script)
		t.Log(tt.name)
		drift(t, f, tt.want...)
		apply(t, f, desired...)
		drift(t, f)
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
	apply(t, testFirewall(t, ns), Masquerade{netip.MustParsePrefix("10.9.0.0/16")}, Accept{netip.MustParsePrefix("10.9.0.0/16")})

	f := testFirewall(t, ns)
	drift(t, f)
	apply(t, f, Masquerade{net4}, Accept{net4})
	all := nstest.Sh(t, ns, "nft list ruleset; iptables -S")
	if strings.Contains(all, "stale") || strings.Contains(all, "10.9.") {
		t.Errorf("something is left of the earlier run:\n%s", all)
	}
	before := nstest.Sh(t, ns, "nft -a list ruleset")
	apply(t, f, Masquerade{net4}, Accept{net4})
	if diff := cmp.Diff(before, nstest.Sh(t, ns, "nft -a list ruleset")); diff != "" {
		t.Errorf("an identical apply wrote (-before +after):\n%s", diff)
	}

	if err := testFirewall(t, ns).remove(t.Context()); err != nil {
		t.Fatal(err)
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
