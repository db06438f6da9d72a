package enforce

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/policy/compile"
)

// flood sends UDP to port 99 of to, from another port each time, until stop is called, which says how many came of how many.
func flood(t *testing.T, from, to netns.NsHandle, addr string) (stop func() (came, sent int)) {
	t.Helper()
	var in, out net.PacketConn
	if err := rtnl.InNetns(to, func() (err error) { in, err = net.ListenPacket("udp4", ":99"); return err }); err != nil {
		t.Fatal(err)
	}
	raw, err := in.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) })
	var came atomic.Int64
	go func() {
		for buf := make([]byte, 8); ; came.Add(1) {
			if _, _, err := in.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	dst := net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip(addr), 99))
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			if err := rtnl.InNetns(from, func() (err error) { out, err = net.ListenPacket("udp4", ":0"); return err }); err != nil {
				t.Error(err)
				break
			}
			out.WriteTo(binary.BigEndian.AppendUint64(nil, uint64(n)), dst)
			out.Close()
		}
		sent <- n
	}()
	return func() (int, int) {
		cancel()
		n := <-sent
		time.Sleep(20 * time.Millisecond)
		in.Close()
		return int(came.Load()), n
	}
}

// nft flush ruleset opens all. It is closed, and the daemon is told; counters go on when all is made anew, and who waits goes on waiting.
func TestFlush(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	full := compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": tcp80(b4, b6)},
		Set:  isolate("i1", "", a4, a6),
	}
	table := bridged(t, s, full)
	if err := rtnl.InNetns(s.host, func() error { _, err := pending.Add([]netip.Addr{peer4, peer6}); return err }); err != nil {
		t.Fatal(err)
	}
	stop := flood(t, s.b, s.a, "10.5.1.2")
	time.Sleep(100 * time.Millisecond)
	if came, sent := stop(); came != 0 || sent == 0 {
		t.Fatalf("%d of %d came before anything happened", came, sent)
	}
	var slowest time.Duration
	for _, how := range []string{"nft flush ruleset", "nft delete table inet overlayd_policy", "nft flush table inet overlayd_policy", "nft flush chain inet overlayd_policy forward",
		"nft delete table inet overlayd_pending", "nft flush set inet overlayd_pending pending4"} {
		stop := flood(t, s.b, s.a, "10.5.1.2")
		nstest.Sh(t, s.host, how)
		begin := time.Now()
		for !strings.Contains(nstest.Sh(t, s.host, "nft list ruleset; true"), "jump denied-in") && strings.Contains(how, "policy") {
			if time.Since(begin) > 5*time.Second {
				t.Fatalf("%s: it stays open", how)
			}
		}
		slowest = max(slowest, time.Since(begin))
		<-table.Changed()
		came, sent := stop()
		t.Logf("%s: closed after less than %v; %d of %d packets came", how, time.Since(begin).Round(time.Millisecond), came, sent)
		probes(t, how+", closed", slices.Concat(
			both(s.b, "tcp", "10.5.1.2", "fd00:5:0:1::2", "80", !strings.Contains(how, "policy") && !strings.Contains(how, "ruleset")),
			both(s.host, "tcp", "10.5.1.2", "fd00:5:0:1::2", "80", true),
			both(s.a, "udp", "10.5.1.3", "fd00:5:0:1::3", "80", true),
			both(s.peer, "udp", "10.5.1.3", "fd00:5:0:1::3", "80", false)))
		if strings.Contains(how, "policy") || strings.Contains(how, "ruleset") {
			if err := table.Apply(t.Context(), compile.Change{}); err == nil {
				t.Errorf("%s: what is closed was changed", how)
			}
		}
		counted, _ := Dropped(s.host, "") // what others deleted with the table is gone
		if err := table.Rebuild(t.Context(), full, Options{Unready: Closed}); err != nil {
			t.Fatal(err)
		}
		if now, err := Dropped(s.host, ""); err != nil || now[deniedIn] < counted[deniedIn] || counted[deniedIn] == 0 {
			t.Errorf("%s: counted %v before, %v when made anew, %v", how, counted, now, err)
		}
		probes(t, how+", made anew", slices.Concat(
			both(s.b, "tcp", "10.5.1.2", "fd00:5:0:1::2", "80", true),
			both(s.b, "tcp", "10.5.1.2", "fd00:5:0:1::2", "81", false),
			both(s.peer, "udp", "10.5.1.3", "fd00:5:0:1::3", "80", false)))
	}
	select {
	case <-table.Changed():
		t.Error("own changes are taken for others'")
	default:
	}
	if err := table.Release(t.Context(), []netip.Addr{peer4, peer6, a4}); err != nil {
		t.Fatal(err)
	}
	probes(t, "released", both(s.peer, "udp", "10.5.1.3", "fd00:5:0:1::3", "80", true))
	if found, err := Remove(s.host); !found || err != nil {
		t.Errorf("remove: %t, %v", found, err)
	}
}

// No packet passes while the table is made anew, again and again, nor while its elements change.
func TestRebuildUnderTraffic(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	full := compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": tcp80(b4, b6)},
		Set:  isolate("i1", "", a4, a6),
	}
	table := bridged(t, s, full)
	stop := flood(t, s.b, s.a, "10.5.1.2")
	n := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); n++ {
		if err := table.Rebuild(t.Context(), full, Options{Unready: Closed, LogDenied: n%2 == 0}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []compile.Change{
			{Make: map[compile.GroupID][]compile.Match{"i2": matches()[4:], "e2": matches()}, Set: isolate("i2", "e2", a4, a6), Drop: []compile.GroupID{"i1"}},
			{Make: map[compile.GroupID][]compile.Match{"i1": nil}, Set: isolate("i1", "", a4, a6), Drop: []compile.GroupID{"i2", "e2"}},
		} {
			if err := table.Apply(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
	}
	came, sent := stop()
	if t.Logf("%d times anew, %d of %d packets came", n, came, sent); came > 0 || sent == 0 {
		t.Error("packets came through")
	}
}

// The daemon ends, and rules stay; the next one takes over without letting a packet through, and counts on.
func TestRestart(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	full := compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": tcp80(b4, b6)},
		Set:  isolate("i1", "", a4, a6),
	}
	first, err := New(Config{Namespace: s.host, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	end := nstest.Run(t, first.Run)
	if err := first.Rebuild(t.Context(), full, Options{Unready: Closed}); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Bridge("br0", true); err != nil {
		t.Fatal(err)
	}
	// As if it had been killed before addresses were led to a group that it made.
	if err := first.Apply(t.Context(), compile.Change{Make: map[compile.GroupID][]compile.Match{"i2": {{}}}}); err != nil {
		t.Fatal(err)
	}
	stop := flood(t, s.b, s.a, "10.5.1.2")
	if !add(t, s.host, peer4) {
		t.Error("nobody waits")
	}
	end()
	time.Sleep(50 * time.Millisecond)
	before, err := Dropped(s.host, "")
	if err != nil || before[deniedIn] == 0 {
		t.Errorf("counted %v, %v", before, err)
	}
	second := bridged(t, s, full)
	after, err := Dropped(s.host, "")
	if err != nil || after[deniedIn] < before[deniedIn] {
		t.Errorf("counted %v, then %v, %v", before, after, err)
	}
	if came, sent := stop(); came > 0 || sent == 0 {
		t.Errorf("%d of %d packets came through", came, sent)
	}
	if now, err := second.Pending(t.Context()); err != nil || !slices.Equal(now, []netip.Addr{peer4}) {
		t.Errorf("%v wait, %v", now, err)
	}
	if chains := nstest.Sh(t, s.host, "nft list chains"); strings.Contains(chains, "chain i2") {
		t.Error("what the first one left behind is still there")
	}
}
