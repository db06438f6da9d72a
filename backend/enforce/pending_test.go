package enforce

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/policy/compile"
)

// in runs f there.
func inNS(t *testing.T, ns netns.NsHandle, f func() error) {
	t.Helper()
	if err := rtnl.InNetns(ns, f); err != nil {
		t.Fatal(err)
	}
}

// add is what the plugin does.
func add(t *testing.T, ns netns.NsHandle, addrs ...netip.Addr) (active bool) {
	t.Helper()
	inNS(t, ns, func() (err error) { active, err = pending.Add(addrs); return err })
	return active
}

func wait(t *testing.T, ns netns.NsHandle, addrs ...netip.Addr) (inForce, fail bool, took time.Duration) {
	t.Helper()
	begin := time.Now()
	inNS(t, ns, func() (err error) { inForce, fail, err = pending.Wait(t.Context(), addrs); return err })
	return inForce, fail, time.Since(begin)
}

// What is pending sends nothing, and nothing is sent to it but by its host, until it is released; the plugin hears of that at
// once. Who waits goes on waiting when the table is made anew.
func TestPending(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if add(t, s.host, a4, a6) {
		t.Error("active where there is no table")
	}
	if inForce, fail, took := wait(t, s.host, a4, a6); !inForce || fail || took > time.Second {
		t.Errorf("where there is no table: %t, %t after %v", inForce, fail, took)
	}
	table := bridged(t, s, compile.Change{})
	begin := time.Now()
	if !add(t, s.host, a4, a6) {
		t.Fatal("not active")
	}
	t.Logf("added in %v", time.Since(begin))
	closed := slices.Concat(
		both(s.a, "tcp", "10.5.1.3", "fd00:5:0:1::3", "80", false),
		both(s.a, "udp", "10.5.2.2", "fd00:5:0:2::2", "80", false),
		both(s.a, "tcp", "10.5.1.1", "fd00:5:0:1::1", "80", false),
		both(s.b, "udp", "10.5.1.2", "fd00:5:0:1::2", "80", false),
		both(s.peer, "icmp", "10.5.1.2", "fd00:5:0:1::2", "", false),
		both(s.host, "tcp", "10.5.1.2", "fd00:5:0:1::2", "80", true),
		both(s.host, "icmp", "10.5.1.2", "fd00:5:0:1::2", "", true),
		both(s.b, "tcp", "10.5.2.2", "fd00:5:0:2::2", "80", true))
	probes(t, "pending", closed)
	for _, unready := range []Unready{Fail, Closed} {
		if err := table.Rebuild(t.Context(), compile.Change{}, Options{Unready: unready}); err != nil {
			t.Fatal(err)
		}
		if inForce, fail, took := wait(t, s.host, a4, a6); inForce || fail != (unready == Fail) || took > pending.Waiting+time.Second {
			t.Errorf("%s: in force %t, fail %t after %v", unready, inForce, fail, took)
		}
	}
	now, err := table.Pending(t.Context())
	slices.SortFunc(now, netip.Addr.Compare)
	if err != nil || !slices.Equal(now, []netip.Addr{a4, a6}) {
		t.Errorf("pending are %v, %v", now, err)
	}
	probes(t, "still pending", closed)
	time.AfterFunc(50*time.Millisecond, func() {
		if err := table.Release(t.Context(), []netip.Addr{a4, a6, b4}); err != nil {
			t.Error(err)
		}
	})
	if inForce, _, took := wait(t, s.host, a4, a6); !inForce || took < 50*time.Millisecond {
		t.Errorf("released: in force %t after %v", inForce, took)
	}
	probes(t, "released", slices.Concat(
		both(s.a, "tcp", "10.5.1.3", "fd00:5:0:1::3", "80", true),
		both(s.a, "tcp", "10.5.1.1", "fd00:5:0:1::1", "80", true),
		both(s.peer, "icmp", "10.5.1.2", "fd00:5:0:1::2", "", true)))
	if packets, err := Dropped(s.host, ""); err != nil || packets[pending.Counter] == 0 {
		t.Errorf("counted %v, %v", packets, err)
	}
	if err := table.Rebuild(t.Context(), compile.Change{}, Options{Unready: Open}); err != nil {
		t.Fatal(err)
	}
	if add(t, s.host, a4) {
		t.Error("containers wait though they are not to")
	}
	if err := table.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := nstest.Sh(t, s.host, "nft list ruleset"); left != "" {
		t.Errorf("left: %s", left)
	}
	select {
	case <-table.Changed():
		t.Error("own changes, and the plugin's, are taken for others'")
	default:
	}
}

// The plugin adds all the time while the table is made anew: no address is lost.
func TestPendingKept(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	table := newTable(t, host)
	if err := table.Rebuild(t.Context(), compile.Change{}, Options{Unready: Closed}); err != nil {
		t.Fatal(err)
	}
	added := make(chan int)
	go func() {
		n := 0
		rtnl.InNetns(host, func() error {
			for a := ip("10.9.0.0"); n < 2000; a, n = a.Next(), n+1 {
				if active, err := pending.Add([]netip.Addr{a}); err != nil || !active {
					t.Errorf("add %v: %t, %v", a, active, err)
				}
			}
			return nil
		})
		added <- n
	}()
	rebuilt := 0
	for unready := []Unready{Fail, Closed}; ; rebuilt++ {
		select {
		case want := <-added:
			if now, err := table.Pending(t.Context()); err != nil || len(now) != want {
				t.Errorf("%d are pending of %d, %v", len(now), want, err)
			}
			t.Logf("made anew %d times", rebuilt)
			return
		default:
			if err := table.Rebuild(t.Context(), compile.Change{}, Options{Unready: unready[rebuilt%2]}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Denials say who, to whom, and which side denied it.
func TestDenials(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	table := bridged(t, s, compile.Change{})
	full := compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": nil, "e1": nil},
		Set:  map[netip.Addr]compile.Sides{a4: {In: "i1"}, a6: {In: "i1"}, b4: {Out: "e1"}, b6: {Out: "e1"}},
	}
	if err := table.Rebuild(t.Context(), full, Options{Unready: Closed, LogDenied: true}); err != nil {
		t.Fatal(err)
	}
	want := map[Denial]bool{}
	for _, d := range []Denial{
		{Flow: Flow{peer4, a4, 17, 80}}, {Flow: Flow{peer6, a6, 17, 80}}, {Flow: Flow{peer6, a6, 6, 81}},
		{Flow: Flow{b4, a4, 6, 80}, Egress: true}, {Flow: Flow{b6, peer6, 17, 81}, Egress: true}, {Flow: Flow{b4, peer4, 1, 0}, Egress: true},
	} {
		want[d] = true
	}
	probes(t, "denied", []probe{{s.peer, "udp 10.5.1.2 80", false}, {s.peer, "udp fd00:5:0:1::2 80", false}, {s.peer, "tcp fd00:5:0:1::2 81", false},
		{s.b, "tcp 10.5.1.2 80", false}, {s.b, "udp fd00:5:0:2::2 81", false}, {s.b, "icmp 10.5.2.2", false}})
	for deadline := time.After(5 * time.Second); len(want) > 0; {
		select {
		case d := <-table.Denials():
			if (d.SrcPort == 0) != (d.Proto == 1) {
				t.Errorf("%+v: from port %d", d, d.SrcPort)
			}
			d.SrcPort = 0
			delete(want, d)
		case <-deadline:
			t.Fatalf("not told of %+v", want)
		}
	}
}
