package kernel

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

func testHost(t testing.TB) netns.NsHandle {
	t.Helper()
	ns := nstest.New(t)
	nstest.Sh(t, ns, nstest.LAN)
	return ns
}

// overlay is the part of an overlay network that one family needs.
type overlay struct {
	name   string
	link   VXLAN
	own    Address
	subnet func(i int) netip.Prefix // of peer i
	vtep   func(i int) netip.Addr
	hostgw func(i int) netip.Addr // a gateway on eth0
}

func overlays() []overlay {
	return []overlay{
		{
			name: "IPv4",
			link: VXLAN{
				Name: "overlay.1", VNI: 1, Port: 8472, Local: netip.MustParseAddr("192.0.2.1"), Underlay: "eth0",
				MAC: MAC{2, 0, 0, 0, 0, 1}, MTU: 1450,
			},
			own: Address{Link: "overlay.1", Prefix: netip.MustParsePrefix("10.0.0.0/32")},
			subnet: func(i int) netip.Prefix {
				return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(10 + i>>16), byte(i >> 8), byte(i), 0}), 24)
			},
			vtep:   func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)}) },
			hostgw: func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) },
		},
		{
			name: "IPv6",
			link: VXLAN{
				Name: "overlay6.1", VNI: 1, Port: 8472, Local: netip.MustParseAddr("2001:db8::1"), Underlay: "eth0",
				MAC: MAC{2, 0, 0, 0, 6, 1}, MTU: 1430,
			},
			own: Address{Link: "overlay6.1", Prefix: netip.MustParsePrefix("fd00::/128")},
			subnet: func(i int) netip.Prefix {
				return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 5: byte(i >> 16), 6: byte(i >> 8), 7: byte(i)}), 64)
			},
			vtep: func(i int) netip.Addr {
				return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 4: 1, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
			},
			hostgw: func(i int) netip.Addr {
				return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: byte(i)})
			},
		},
	}
}

func (o overlay) self() []Object { return []Object{o.link, o.own} }

func peerMAC(i int) MAC { return MAC{2, 1, 0, byte(i >> 16), byte(i >> 8), byte(i)} }

// peer is what reaches peer i > 0.
func (o overlay) peer(i int) []Object {
	s := o.subnet(i)
	return []Object{
		Neighbour{Link: o.link.Name, IP: s.Addr(), MAC: peerMAC(i)},
		FDB{Link: o.link.Name, MAC: peerMAC(i), Dst: o.vtep(i)},
		Route{Dst: s, Via: s.Addr(), Link: o.link.Name, OnLink: true},
	}
}

// network is self and n peers, by owner.
func (o overlay) network(n int) map[string][]Object {
	all := map[string][]Object{"self": o.self()}
	for i := 1; i <= n; i++ {
		all[fmt.Sprintf("peer%d", i)] = o.peer(i)
	}
	return all
}

// byName are the claims of owners in the order of their names.
func byName(owners map[string][]Object) (all []Claim) {
	for _, owner := range slices.Sorted(maps.Keys(owners)) {
		all = append(all, Claim{owner, owners[owner]})
	}
	return all
}

// eachFamily runs f as a parallel subtest for each family.
func eachFamily(t *testing.T, f func(t *testing.T, o overlay)) {
	for _, o := range overlays() {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			f(t, o)
		})
	}
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) lines(part string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(strings.Split(b.buf.String(), "\n"), func(l string) bool { return !strings.Contains(l, part) })
}

// running is a Reconciler at work in a namespace.
type running struct {
	*Reconciler
	t    testing.TB
	ns   netns.NsHandle
	log  *logBuffer
	stop func()
}

func start(t testing.TB, ns netns.NsHandle) *running {
	t.Helper()
	return startConfig(t, Config{Namespace: ns})
}

func startConfig(t testing.TB, cfg Config, adjust ...func(*Reconciler)) *running {
	t.Helper()
	log := &logBuffer{}
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range adjust {
		f(r)
	}
	r.For("") // as a daemon has it
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", log.buf.String())
		}
	})
	stop := nstest.Run(t, r.Run)
	return &running{Reconciler: r, t: t, ns: cfg.Namespace, log: log, stop: stop}
}

// startWith is a Reconciler on a host of its own that has programmed n peers.
func startWith(t testing.TB, o overlay, n int) *running {
	t.Helper()
	r := start(t, testHost(t))
	r.Replace("", byName(o.network(n)))
	r.inStep()
	return r
}

// unseen runs a script of which the Reconciler sees no step before the last: on a slow machine, or a kernel that does
// nothing to a link that is up, it would undo the first before the next.
func (r *running) unseen(script string) {
	r.t.Helper()
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	nstest.Sh(r.t, r.ns, script)
}

// until waits for a status.
func (r *running) until(what string, ok func(Status) bool) {
	r.t.Helper()
	deadline := time.After(time.Minute) // when it gives up; nothing is judged by it
	for !ok(r.Status()) {
		select {
		case <-r.Changed():
		case <-deadline:
			r.t.Fatalf("not %s: %+v", what, r.Status())
		}
	}
}

func (r *running) inStep() {
	r.t.Helper()
	r.until("in step", func(s Status) bool { return s.InStep })
}

// healedExactly waits until something was healed, and compares how many of each kind.
func (r *running) healedExactly(want map[Kind]int) {
	r.t.Helper()
	r.until("healed", func(s Status) bool { return s.InStep && len(s.Healed) > 0 })
	if diff := cmp.Diff(want, r.Status().Healed); diff != "" {
		r.t.Errorf("healed (-want +got):\n%s", diff)
	}
}

// healedTo waits until so many objects of a kind were healed, and all is in step.
func (r *running) healedTo(kind Kind, n int) {
	r.t.Helper()
	r.until(fmt.Sprintf("%d of kind %s healed", n, kind), func(s Status) bool { return s.InStep && s.Healed[kind] >= n })
	if got := r.Status().Healed[kind]; got != n {
		r.t.Errorf("%d of kind %s healed, want %d", got, kind, n)
	}
}

// kernelHas is what ip shows of the overlay, in lines that say no more than the test wants to know.
func kernelHas(t testing.TB, ns netns.NsHandle, o overlay) []string {
	t.Helper()
	out := nstest.Sh(t, ns, fmt.Sprintf(`
ip -o link show dev %[1]s 2>/dev/null | sed 's/^[0-9]*: \([^:]*\): .*UP.* mtu \([0-9]*\) .*/link \1 up mtu \2/' || true
ip -o address show dev %[1]s scope global 2>/dev/null | sed 's/.*\(inet6*\) \([^ ]*\) .*/address \2/' || true
{ ip -4 neighbour show nud permanent; ip -6 neighbour show nud permanent; } | sort -V
bridge fdb show dev %[1]s 2>/dev/null | sort || true
{ ip -4 route show proto 111; ip -6 route show proto 111; } | sed 's/ metric [0-9]*//; s/ pref medium//' | sort -V`, o.link.Name))
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return lines
}

// wantsOf is what kernelHas shows when all is right.
func wantsOf(o overlay, peers ...int) []string {
	lines := []string{
		fmt.Sprintf("link %s up mtu %d", o.link.Name, o.link.MTU),
		"address " + o.own.Prefix.String(),
	}
	for _, i := range peers {
		lines = append(lines, fmt.Sprintf("%s dev %s lladdr %s PERMANENT", o.subnet(i).Addr(), o.link.Name, peerMAC(i)))
	}
	for _, i := range peers {
		lines = append(lines, fmt.Sprintf("%s dst %s self permanent", peerMAC(i), o.vtep(i)))
	}
	for _, i := range peers {
		s := o.subnet(i)
		lines = append(lines, fmt.Sprintf("%s via %s dev %s onlink", s, s.Addr(), o.link.Name))
	}
	return lines
}

// dumpOf is all that ip shows of a namespace, but for what changes by itself.
func dumpOf(t *testing.T, ns netns.NsHandle) string {
	t.Helper()
	for {
		out := nstest.Sh(t, ns, `
ip -o -details link | sed 's/promiscuity.*vxlan/vxlan/; s/ addrgenmode.*//; s/promiscuity.*//; s/ state [A-Z]*//; s/<[^>]*>//'
ip -o address | grep -v 'inet6 fe80' | sed 's/valid_lft.*//'
{ ip -4 neighbour show nud permanent; ip -6 neighbour show nud permanent; } | sort
bridge fdb show | grep -v ' 33:33:\|^33:33:' | sort
{ ip -4 route show table all; ip -6 route show table all; } | grep -v 'fe80\|ff00' | sort`)
		if !strings.Contains(out, "Dump was interrupted") { // by the kernel's own doings, on a slow machine
			return out
		}
	}
}

func sameDump(t *testing.T, want, got string) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
}
