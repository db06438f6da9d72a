package probe_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/cmd/internal/probe"
)

var count atomic.Int64

// path is three namespaces in a row: here, a router, and there. The second link carries packets of 1400 bytes.
type path struct {
	t                   *testing.T
	here, router, there string
}

// The addresses of the far end.
var (
	thereV4 = netip.MustParseAddr("192.0.2.130")
	thereV6 = netip.MustParseAddr("2001:db8:2::2")
)

func newPath(t *testing.T) path {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	id := fmt.Sprintf("ovprobe%d-%d-", os.Getpid(), count.Add(1))
	p := path{t, id + "a", id + "r", id + "b"}
	for _, ns := range []string{p.here, p.router, p.there} {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { run(t, "ip", "netns", "delete", ns) })
		p.in(ns, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.accept_dad=0")
		p.in(ns, "ip", "link", "set", "lo", "up")
	}
	p.link(p.here, "eth0", []string{"192.0.2.2/25", "2001:db8:1::2/64"}, p.router, "eth0", []string{"192.0.2.1/25", "2001:db8:1::1/64"}, 1500)
	p.link(p.there, "eth0", []string{"192.0.2.130/25", "2001:db8:2::2/64"}, p.router, "eth1", []string{"192.0.2.129/25", "2001:db8:2::1/64"}, 1400)
	for ns, via := range map[string][2]string{p.here: {"192.0.2.1", "2001:db8:1::1"}, p.there: {"192.0.2.129", "2001:db8:2::1"}} {
		p.in(ns, "ip", "route", "add", "default", "via", via[0])
		p.in(ns, "ip", "route", "add", "default", "via", via[1])
	}
	return p
}

func (p path) link(a, devA string, addrsA []string, b, devB string, addrsB []string, mtu int) {
	p.t.Helper()
	p.in(a, "ip", "link", "add", devA, "type", "veth", "peer", "name", devB, "netns", b)
	for _, end := range []struct {
		ns, dev string
		addrs   []string
	}{{a, devA, addrsA}, {b, devB, addrsB}} {
		p.in(end.ns, "ip", "link", "set", end.dev, "mtu", fmt.Sprint(mtu), "up")
		for _, addr := range end.addrs {
			p.in(end.ns, "ip", "address", "add", addr, "dev", end.dev)
		}
	}
}

func (p path) in(ns string, args ...string) {
	p.t.Helper()
	run(p.t, append([]string{"ip", "netns", "exec", ns}, args...)...)
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// do calls f on a thread that is at the near end, and ends with f.
func (p path) do(f func()) {
	p.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		ns, err := netns.GetFromName(p.here)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		p.t.Fatal(err)
	}
}

func (p path) ping(cfg probe.Config, targets ...probe.Target) (results []probe.Result) {
	p.t.Helper()
	var err error
	p.do(func() { results, err = probe.Ping(p.t.Context(), targets, cfg) })
	if err != nil {
		p.t.Fatal(err)
	}
	return results
}

var quick = probe.Config{Count: 4, Interval: 10 * time.Millisecond, Timeout: 300 * time.Millisecond}

func TestPing(t *testing.T) {
	t.Parallel()
	p := newPath(t)
	nobody, nowhere := netip.MustParseAddr("192.0.2.140"), netip.MustParseAddr("198.51.100.1")
	p.in(p.here, "ip", "route", "add", "unreachable", "198.51.100.0/24")
	results := p.ping(quick,
		probe.Target{Addr: thereV4}, probe.Target{Addr: nobody}, probe.Target{Addr: thereV6},
		probe.Target{Addr: nowhere}, probe.Target{Addr: thereV4, Size: 1400}, probe.Target{Addr: thereV4, Size: 1401},
		probe.Target{Addr: thereV6, Size: 1400}, probe.Target{Addr: thereV6, Size: 1401}, probe.Target{Addr: thereV4, Size: 1501},
		probe.Target{Addr: thereV4, UDP: true}, probe.Target{Addr: thereV6, UDP: true}, probe.Target{Addr: nobody, UDP: true})
	for i, want := range []struct {
		received int
		err      error
	}{
		{4, nil}, {0, nil}, {4, nil}, {0, syscall.EHOSTUNREACH}, {4, nil}, {0, nil}, {4, nil}, {0, nil}, {0, syscall.EMSGSIZE},
		{4, nil}, {4, nil}, {0, nil},
	} {
		r := results[i]
		if r.Sent != 4 || r.Received != want.received || !errors.Is(r.Err, want.err) {
			t.Errorf("%s in %d bytes: %d of %d answered, %v; want %d, %v", r.Addr, r.Size, r.Received, r.Sent, r.Err, want.received, want.err)
		}
		if r.Received > 0 && (r.Min <= 0 || r.Min > r.Avg || r.Avg > r.Max || r.Max > time.Second) {
			t.Errorf("%s: times %v, %v, %v", r.Addr, r.Min, r.Avg, r.Max)
		}
	}
}

// TestLoss has the far end hear every other echo.
func TestLoss(t *testing.T) {
	t.Parallel()
	p := newPath(t)
	p.in(p.there, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in icmp type echo-request numgen inc mod 2 == 0 drop")
	r := p.ping(quick, probe.Target{Addr: thereV4})[0]
	if r.Lost() != 0.5 {
		t.Errorf("%d of %d are lost, by %.0f %%; want half", r.Sent-r.Received, r.Sent, 100*r.Lost())
	}
}

// TestManyAtOnce asks more than a burst, and takes no answer for another's.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	p := newPath(t)
	p.in(p.there, "ip", "route", "add", "local", "10.9.0.0/16", "dev", "lo")
	p.in(p.router, "ip", "route", "add", "10.9.0.0/16", "via", thereV4.String())
	var targets []probe.Target
	for i := range 5000 {
		targets = append(targets, probe.Target{Addr: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})})
	}
	lost := 0
	for _, r := range p.ping(probe.Config{Count: 2, Interval: 10 * time.Millisecond, Timeout: 5 * time.Second}, targets...) {
		lost += r.Sent - r.Received
	}
	if lost > 10 {
		t.Errorf("%d of 10000 are lost", lost)
	}
}

func TestPathMTU(t *testing.T) {
	t.Parallel()
	p := newPath(t)
	nobody := netip.MustParseAddr("192.0.2.140")
	for want, found := range map[int]int{1300: 1300, 1400: 1400, 1401: 1400, 1500: 1400, 9000: 1400} {
		var got map[netip.Addr]int
		var err error
		p.do(func() { got, err = probe.PathMTU(t.Context(), []netip.Addr{thereV4, thereV6, nobody}, want) })
		if err != nil {
			t.Fatal(err)
		}
		if got[thereV4] != found || got[thereV6] != found || got[nobody] != 0 || len(got) != 3 {
			t.Errorf("of %d bytes %v pass, want %d and 0", want, got, found)
		}
	}
}

func TestPingIsInterrupted(t *testing.T) {
	t.Parallel()
	p := newPath(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	var err error
	p.do(func() {
		_, err = probe.Ping(ctx, []probe.Target{{Addr: netip.MustParseAddr("192.0.2.140")}}, probe.Config{Count: 100, Interval: time.Second, Timeout: time.Minute})
	})
	if !errors.Is(err, context.Canceled) || time.Since(start) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
}

func TestNobodyToPing(t *testing.T) {
	t.Parallel()
	if results, err := probe.Ping(t.Context(), nil, quick); err != nil || len(results) != 0 {
		t.Errorf("%v, %v", results, err)
	}
}
