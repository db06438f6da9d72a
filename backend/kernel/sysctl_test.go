package kernel

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
		got, err := Sysctl{Name: tt.name}.path()
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestSysctlObject(t *testing.T) {
	t.Parallel()
	s := Sysctl{Name: "net.ipv4.ip_forward", Value: "1"}
	if got, want := s.String(), "sysctl -w net.ipv4.ip_forward=1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := s.Key(); got != (Sysctl{Name: s.Name}).Key() {
		t.Errorf("key %v: does not leave the value out", got)
	}
}

func TestSysctls(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	nstest.Sh(t, ns, "ip link add overlay.1 type bridge; sysctl -qw net.ipv4.ip_forward=0 net.ipv4.ip_local_port_range='2000 3000'")
	get := func(names string) string { return oneBlank(nstest.Sh(t, ns, "sysctl -n "+names)) }
	c := newSysctls(ns)
	ctx := t.Context()

	err := c.apply(ctx, []Object{
		Sysctl{"net.ipv6.conf.overlay/9.accept_ra", "0"}, // does not keep the others from being set
		Sysctl{"net.ipv4.ip_forward", "1"},
	})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "overlay/9") {
		t.Errorf("a link that is not there: got %v", err)
	}
	if got := get("net.ipv4.ip_forward"); got != "1" {
		t.Errorf("ip_forward is %s", got)
	}
	if drift, err := c.drifted(ctx); err != nil || !cmp.Equal(drift, []string{"net.ipv6.conf.overlay/9.accept_ra"}) {
		t.Errorf("drift %v, %v", drift, err)
	}

	desired := []Object{
		Sysctl{"net.ipv6.conf.overlay/1.accept_ra", "0"},
		Sysctl{"net.ipv4.ip_forward", "1"},
		Sysctl{"net.ipv4.ip_local_port_range", "2000 3000"}, // the kernel puts a tab between
	}
	if err := c.apply(ctx, desired); err != nil {
		t.Fatal(err)
	}
	if drift, err := c.drifted(ctx); err != nil || drift != nil {
		t.Errorf("drift %v, %v", drift, err)
	}
	nstest.Sh(t, ns, "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.overlay/1.accept_ra=1")
	want := []string{"net.ipv4.ip_forward", "net.ipv6.conf.overlay/1.accept_ra"}
	if drift, err := c.drifted(ctx); err != nil || !cmp.Equal(drift, want) {
		t.Errorf("drift %v, %v, want %v", drift, err, want)
	}
	if err := c.apply(ctx, desired); err != nil {
		t.Fatal(err)
	}
	if got := get("net.ipv4.ip_forward net.ipv6.conf.overlay/1.accept_ra"); got != "1 0" {
		t.Errorf("healed to %s", got)
	}
	if err := c.remove(ctx); err != nil {
		t.Fatal(err)
	}
	if got := get("net.ipv4.ip_forward net.ipv6.conf.overlay/1.accept_ra"); got != "0 1" {
		t.Errorf("given back as %s", got)
	}
}

func TestSysctlsGiveBack(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	nstest.Sh(t, ns, "ip link add overlay.1 type bridge; sysctl -qw net.ipv4.ip_forward=0 net.ipv4.ip_default_ttl=64 net.ipv4.ip_no_pmtu_disc=0")
	c := newSysctls(ns)
	err := c.apply(t.Context(), []Object{
		Sysctl{"net.ipv4.ip_forward", "1"},
		Sysctl{"net.ipv4.ip_default_ttl", "65"},
		Sysctl{"net.ipv4.ip_no_pmtu_disc", "1"},
		Sysctl{"net.ipv6.conf.overlay/1.accept_ra", "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	// Dropped from the desired: given back at once. Written by others: theirs. Gone: no error.
	if err := c.apply(t.Context(), []Object{Sysctl{"net.ipv4.ip_default_ttl", "65"}, Sysctl{"net.ipv4.ip_no_pmtu_disc", "1"}}); err != nil {
		t.Fatal(err)
	}
	if got := oneBlank(nstest.Sh(t, ns, "sysctl -n net.ipv4.ip_forward net.ipv4.ip_default_ttl")); got != "0 65" {
		t.Errorf("after the drop: %s", got)
	}
	nstest.Sh(t, ns, "sysctl -qw net.ipv4.ip_default_ttl=66; ip link del overlay.1")
	if err := c.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := oneBlank(nstest.Sh(t, ns, "sysctl -n net.ipv4.ip_default_ttl net.ipv4.ip_no_pmtu_disc")); got != "66 0" {
		t.Errorf("after removal: %s", got)
	}
}
