package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// BenchmarkProgram brings peers to an empty kernel, by a Reconciler and by ip -batch and bridge -batch, and tells the
// ratio of the two. Both are given the link.
func BenchmarkProgram(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 60_000} {
		for _, o := range overlays() {
			b.Run(fmt.Sprintf("peers=%d/%s", n, o.name), func(b *testing.B) {
				var ours, theirs time.Duration
				for b.Loop() {
					ours += programTime(b, o, n)
					theirs += batchTime(b, o, n)
				}
				b.ReportMetric(ours.Seconds()/float64(b.N), "s/reconciler")
				b.ReportMetric(theirs.Seconds()/float64(b.N), "s/batch")
				b.ReportMetric(ours.Seconds()/theirs.Seconds(), "ratio")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

func programTime(b *testing.B, o overlay, n int) time.Duration {
	ns := nstest.New(b)
	nstest.Sh(b, ns, nstest.LAN)
	defer func() { nstest.Sh(b, ns, "ip link del "+o.link.Name); ns.Close() }()
	r := start(b, ns)
	r.Replace("", byName(o.network(0)))
	r.inStep()
	all := byName(o.network(n))
	begin := time.Now()
	r.Replace("", all)
	r.inStep()
	took := time.Since(begin)
	r.stop()
	return took
}

func batchTime(b *testing.B, o overlay, n int) time.Duration {
	ns := nstest.New(b)
	nstest.Sh(b, ns, nstest.LAN)
	defer func() { nstest.Sh(b, ns, "ip link del "+o.link.Name); ns.Close() }()
	for _, object := range o.self() {
		nstest.Sh(b, ns, object.String())
	}
	var ip, bridge strings.Builder
	for i := 1; i <= n; i++ {
		for _, object := range o.peer(i) {
			if cmd, ok := strings.CutPrefix(object.String(), "ip "); ok {
				fmt.Fprintln(&ip, cmd)
			} else {
				fmt.Fprintln(&bridge, strings.TrimPrefix(object.String(), "bridge "))
			}
		}
	}
	dir := b.TempDir()
	for name, text := range map[string]string{"ip": ip.String(), "bridge": bridge.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	begin := time.Now()
	err := rtnl.InNetns(ns, func() error {
		for _, name := range []string{"ip", "bridge"} {
			if out, err := exec.Command(name, "-batch", filepath.Join(dir, name)).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", name, err, out)
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return time.Since(begin)
}

// BenchmarkUpdate puts and removes one peer beside many.
func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			o := overlays()[0]
			ns := nstest.New(b)
			nstest.Sh(b, ns, nstest.LAN)
			r := start(b, ns)
			r.Replace("", byName(o.network(n)))
			r.inStep()
			with, without := []Claim{{"one", o.peer(n + 1)}}, []Claim{{"one", nil}}
			for b.Loop() {
				r.Update("", with)
				r.inStep()
				r.Update("", without)
				r.inStep()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(2*b.N), "µs/change")
			b.ReportMetric(heapOf(func() any { return r.Reconciler })/float64(n), "B/peer")
			r.stop()
		})
	}
}

// heapOf is what the heap holds, in bytes, while keep is in use.
func heapOf(keep func() any) float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	runtime.KeepAlive(keep())
	return float64(m.HeapAlloc)
}
