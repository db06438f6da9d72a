package sysctl

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

func TestSysctlPath(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, want string }{
		{"", ""},
		{"..", ""},
		{"net/../../../etc/passwd", ""},
		{"/etc/passwd", ""},
		{"net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"},
		{"net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_forward"},
		{"net.ipv6.conf.overlay/1.accept_ra", "/proc/sys/net/ipv6/conf/overlay.1/accept_ra"},
		{"net/ipv6/conf/overlay.1/accept_ra", "/proc/sys/net/ipv6/conf/overlay.1/accept_ra"},
	} {
		got, err := Param{Name: tt.name}.path()
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestSysctlObject(t *testing.T) {
	t.Parallel()
	s := Param{Name: "net.ipv4.ip_forward", Value: "1"}
	if got, want := s.String(), "sysctl -w net.ipv4.ip_forward=1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSysctls(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	nstest.Sh(t, ns, "ip link add overlay.1 type bridge; sysctl -qw net.ipv4.ip_forward=0 net.ipv4.ip_local_port_range='2000 3000'")
	get := func(names string) string { return oneBlank(nstest.Sh(t, ns, "sysctl -n "+names)) }
	c := newSysctls(ns)
	ctx := t.Context()

	changed, err := c.apply(ctx, []Param{
		{Name: "net.ipv4.nothing", Value: "0"}, // does not keep the others from being set
		{Name: "net.ipv4.ip_forward", Value: "1"},
	})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "net.ipv4.nothing") {
		t.Errorf("a parameter that is not there: got %v", err)
	}
	if got := get("net.ipv4.ip_forward"); got != "1" || changed != 1 {
		t.Errorf("ip_forward is %s, %d changed", got, changed)
	}
	desired := []Param{
		{Name: "net.ipv6.conf.overlay/1.accept_ra", Value: "0"},
		{Name: "net.ipv4.ip_forward", Value: "1"},
		{Name: "net.ipv4.ip_local_port_range", Value: "2000 3000"}, // the kernel puts a tab between
	}
	apply := func(want int, desired ...Param) {
		t.Helper()
		if changed, err := c.apply(ctx, desired); err != nil || changed != want {
			t.Errorf("%d changed, want %d; %v", changed, want, err)
		}
	}
	apply(1, desired...)
	apply(0, desired...)
	nstest.Sh(t, ns, "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.overlay/1.accept_ra=1")
	apply(2, desired...)
	if got := get("net.ipv4.ip_forward net.ipv6.conf.overlay/1.accept_ra"); got != "1 0" {
		t.Errorf("healed to %s", got)
	}
	apply(0)
	if got := get("net.ipv4.ip_forward net.ipv6.conf.overlay/1.accept_ra"); got != "0 1" {
		t.Errorf("given back as %s", got)
	}
}

func TestSysctlsGiveBack(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	nstest.Sh(t, ns, "ip link add overlay.1 type bridge; sysctl -qw net.ipv4.ip_forward=0 net.ipv4.ip_default_ttl=64 net.ipv4.ip_no_pmtu_disc=0")
	c := newSysctls(ns)
	_, err := c.apply(t.Context(), []Param{
		{Name: "net.ipv4.ip_forward", Value: "1"},
		{Name: "net.ipv4.ip_default_ttl", Value: "65"},
		{Name: "net.ipv4.ip_no_pmtu_disc", Value: "1"},
		{Name: "net.ipv6.conf.overlay/1.accept_ra", Value: "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	// Dropped from the desired: given back at once. Written by others: theirs. Gone: no error.
	if _, err := c.apply(t.Context(), []Param{{Name: "net.ipv4.ip_default_ttl", Value: "65"}, {Name: "net.ipv4.ip_no_pmtu_disc", Value: "1"}}); err != nil {
		t.Fatal(err)
	}
	if got := oneBlank(nstest.Sh(t, ns, "sysctl -n net.ipv4.ip_forward net.ipv4.ip_default_ttl")); got != "0 65" {
		t.Errorf("after the drop: %s", got)
	}
	nstest.Sh(t, ns, "sysctl -qw net.ipv4.ip_default_ttl=66; ip link del overlay.1")
	if _, err := c.apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := oneBlank(nstest.Sh(t, ns, "sysctl -n net.ipv4.ip_default_ttl net.ipv4.ip_no_pmtu_disc")); got != "66 0" {
		t.Errorf("after removal: %s", got)
	}
}
