package kernel

import (
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// Links of ours carry IPv6 on a host that has it off for new links, and again after it was turned off on them; and they hear
// no router.
func TestIPv6OffByDefault(t *testing.T) {
	t.Parallel()
	ns := testHost(t)
	nstest.Sh(t, ns, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.default.accept_ra=2")
	r := start(t, ns)
	o := overlays()[1]
	r.Replace("", byName(o.network(1)))
	r.inStep()
	want := kernelHas(t, ns, o)
	if len(want) == 0 {
		t.Fatal("nothing is there")
	}
	// What is told of the link afterwards, as the kernel itself may, is no word about IPv6.
	nstest.Sh(t, ns, "sysctl -qw net.ipv6.conf.overlay6/1.disable_ipv6=1; ip link set overlay6.1 txqueuelen 7")
	r.until("healed", func(s Status) bool { return s.InStep && s.Healed[KindAddress] > 0 && s.Healed[KindRoute] > 0 })
	if got := nstest.Sh(t, ns, "cd /proc/sys/net/ipv6/conf/overlay6.1; cat disable_ipv6 accept_ra"); got != "0\n0\n" {
		t.Errorf("disable_ipv6 and accept_ra are %q", got)
	}
}

// A link of ours takes no address of its own, and one that carries IPv4 knows no IPv6.
func TestLinkHasNoIPv6OfItsOwn(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		r := start(t, ns)
		r.Replace("", byName(o.network(1)))
		r.inStep()
		if got := nstest.Sh(t, ns, "ip -6 address show dev "+o.link.Name+" scope link"); got != "" {
			t.Errorf("addresses of its own: %s", got)
		}
		if got := nstest.Sh(t, ns, "ip -6 address show dev "+o.link.Name); !o.link.Local.Is6() && got != "" {
			t.Errorf("IPv6: %s", got)
		}
		if got := nstest.Sh(t, ns, "ip link show dev "+o.link.Name); !strings.Contains(got, "NOARP") {
			t.Errorf("it does ARP: %s", got)
		}
	})
}

// Routes wait for what they lead packets into, and for that alone.
func TestRoutesAfter(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns, gate := testHost(t), make(chan struct{})
		r := startConfig(t, Config{Namespace: ns, RoutesAfter: gate})
		r.Replace("", byName(o.network(3)))
		r.until("all but the routes", func(s Status) bool { return s.Pending == 3 && !s.InStep })
		if got := nstest.Sh(t, ns, "{ ip -4 route show proto 111; ip -6 route show proto 111; }"); got != "" {
			t.Errorf("routes: %s", got)
		}
		close(gate)
		r.inStep()
		r.has(o, 1, 2, 3)
	})
}
