package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/bypass"
	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// fakeCarrier takes in what it is told.
type fakeCarrier struct {
	mu      sync.Mutex
	own     fastpath.Own
	claims  int
	history [][]fastpath.Container
	judge   func(netip.Addr) bool
	slow    []netip.Addr
	off     string
	running bool
}

func (c *fakeCarrier) Run(ctx context.Context) error {
	c.mu.Lock()
	c.running = true
	c.mu.Unlock()
	<-ctx.Done()
	return nil
}
func (c *fakeCarrier) SetOwn(o fastpath.Own) { c.mu.Lock(); defer c.mu.Unlock(); c.own = o }
func (c *fakeCarrier) Replace(all []fastpath.Claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claims = len(all)
}
func (c *fakeCarrier) Update(some []fastpath.Claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claims += len(some)
}
func (c *fakeCarrier) SetSlow(j func(netip.Addr) bool) { c.mu.Lock(); defer c.mu.Unlock(); c.judge = j }
func (c *fakeCarrier) Programs() []uint32              { return nil }
func (c *fakeCarrier) SetContainers(all []fastpath.Container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history = append(c.history, slices.Clone(all))
}

func (c *fakeCarrier) Slow(addrs []netip.Addr, slow bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slow = slices.DeleteFunc(c.slow, func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	if slow {
		c.slow = append(c.slow, addrs...)
	}
}

func (c *fakeCarrier) Use(off string, _ bool, _ map[int]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = off
}
func (c *fakeCarrier) Status() fastpath.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fastpath.Status{Off: c.off, Peers: c.claims}
}

// fakeLookout sees what the test says.
type fakeLookout struct {
	blind
	mu      sync.Mutex
	host    string
	changed chan struct{}
}

func (l *fakeLookout) Changed() <-chan struct{} { return l.changed }
func (l *fakeLookout) Report() bypass.Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bypass.Report{Host: l.host}
}

// runFast runs a fast path of which load makes the carrier.
func runFast(t *testing.T, mode api.FastPathMode, load func() (Carrier, error), watch func() (Lookout, error)) *FastPath {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	records := attachment.Follow(t.TempDir(), log)
	f := NewFastPath(FastConfig{Mode: mode, Records: records, Log: log, Load: load, Watch: watch})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { records.Run(ctx) })
	all.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); all.Wait() })
	return f
}

func (f *FastPath) off() string { s, _ := f.Status(); return s.Off }

// It is loaded when it may be used, which may be late, and then knows what it was told before; it is off where it is told to be,
// and where somebody wants to see packets, unless it is on whatever there is.
func TestFastPathModes(t *testing.T) {
	t.Parallel()
	c, l := &fakeCarrier{}, &fakeLookout{changed: make(chan struct{}, 1), host: "a rule"}
	f := runFast(t, api.FastPathOff, func() (Carrier, error) { return c, nil }, func() (Lookout, error) { return l, nil })
	end := FastEnd{Own: fastpath.Own{Underlay: 2, MTU: 1450}}
	f.SetOwn(end)
	f.SetSlow(func(netip.Addr, attachment.Key) bool { return true })
	f.Replace(nil)
	if f.Active() || f.off() != switchedOff {
		t.Errorf("active %v, off %q", f.Active(), f.off())
	}
	f.SetMode(api.FastPathAuto)
	<-f.Loaded()
	f.Update([]fastpath.Claim{{Owner: "too early"}})
	if s, _ := f.Status(); !f.Empty() || s.Peers != 0 {
		t.Errorf("empty %v, %d peers", f.Empty(), s.Peers)
	}
	f.Replace([]fastpath.Claim{{Owner: "a"}})
	f.Update([]fastpath.Claim{{Owner: "b"}})
	eventually(t, "it is off for the rule", func() bool { return f.off() == "a rule" })
	c.mu.Lock()
	if c.own.Underlay != 2 || c.judge == nil || !c.judge(netip.Addr{}) || c.claims != 2 {
		t.Errorf("it knows %+v, %d claims", c.own, c.claims)
	}
	c.mu.Unlock()
	f.SetMode(api.FastPathOn)
	if f.off() != "" {
		t.Errorf("on, and off: %s", f.off())
	}
	f.SetMode(api.FastPathOff)
	c.mu.Lock()
	if c.off != switchedOff {
		t.Errorf("off, and the programs are told %q", c.off)
	}
	c.mu.Unlock()
	f.SetMode(api.FastPathAuto)
	l.mu.Lock()
	l.host = ""
	l.mu.Unlock()
	l.changed <- struct{}{}
	eventually(t, "the rule is gone", func() bool { return f.off() == "" })
}

// A kernel that cannot is said to, and tried again when somebody switches; who cannot see what would be passed by passes nothing by.
func TestFastPathCannot(t *testing.T) {
	t.Parallel()
	lacks := errors.New("no BTF")
	c := &fakeCarrier{}
	var mu sync.Mutex
	f := runFast(t, api.FastPathAuto, func() (Carrier, error) { mu.Lock(); defer mu.Unlock(); return c, lacks },
		func() (Lookout, error) { return nil, errors.New("no netlink") })
	eventually(t, "it says what the kernel lacks", func() bool { s, _ := f.Status(); return s.Off == "no BTF" && s.Lacking })
	mu.Lock()
	lacks = nil
	mu.Unlock()
	f.SetMode(api.FastPathOn)
	<-f.Loaded()
	f.SetMode(api.FastPathAuto)
	eventually(t, "it says that it is blind", func() bool { return strings.Contains(f.off(), "no netlink") })
}

// An address that another container has now is taken away before it is given, so that it is judged as the new one's.
func TestFastPathHandsOver(t *testing.T) {
	t.Parallel()
	c := &fakeCarrier{}
	f := NewFastPath(FastConfig{Records: attachment.Follow(t.TempDir(), slog.Default())})
	f.path = c
	addr, other := netip.MustParseAddr("10.5.72.2"), netip.MustParseAddr("10.5.72.3")
	free := attachment.Key{ContainerID: "old"}
	f.SetSlow(func(_ netip.Addr, of attachment.Key) bool { return of != free })
	had := []fastpath.Container{{Index: 3, Addrs: []netip.Addr{addr}}, {Index: 4, Addrs: []netip.Addr{other}}}
	f.hand(had, map[netip.Addr]attachment.Key{addr: {ContainerID: "old"}, other: {ContainerID: "other"}})
	if c.judge(addr) || !c.judge(other) {
		t.Error("the old one is slow, or the other is not")
	}
	c.history = nil
	has := []fastpath.Container{{Index: 5, Addrs: []netip.Addr{addr}}, had[1]}
	f.hand(has, map[netip.Addr]attachment.Key{addr: {ContainerID: "new"}, other: {ContainerID: "other"}})
	want := [][]fastpath.Container{{{Index: 5, Addrs: []netip.Addr{}}, had[1]}, has}
	if diff := cmp.Diff(want, c.history, comparable); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	f.Slow([]netip.Addr{addr}, true)
	f.Slow([]netip.Addr{addr}, false) // was meant for the old one
	if !c.judge(addr) || !slices.Contains(c.slow, addr) {
		t.Error("the new one is fast as the old one was")
	}
}
