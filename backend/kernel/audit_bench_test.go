package kernel

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// BenchmarkAudit compares a kernel that is in step with what is desired, and tells how long a change waits that comes in
// the middle of that.
func BenchmarkAudit(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000, 60_000} {
		for _, o := range overlays() {
			b.Run(fmt.Sprintf("peers=%d/%s", n, o.name), func(b *testing.B) {
				ns := nstest.New(b)
				nstest.Sh(b, ns, nstest.LAN)
				r := start(b, ns)
				r.Replace("", byName(o.network(n)))
				r.inStep()
				r.stop()
				wall := auditTime(b, ns, o, n)
				r = start(b, ns)
				r.Replace("", byName(o.network(n)))
				r.inStep()
				b.ReportMetric(waitTime(r, o, n, 0), "ms/update")
				b.ReportMetric(waitTime(r, o, n, wall), "ms/update-in-audit")
				b.ReportMetric(0, "ns/op")
				r.stop()
				nstest.Sh(b, ns, "ip link del "+o.link.Name)
			})
		}
	}
}

// auditTime measures audits by themselves, and returns how long one takes.
func auditTime(b *testing.B, ns netns.NsHandle, o overlay, n int) time.Duration {
	r, err := New(Config{Namespace: ns})
	if err != nil {
		b.Fatal(err)
	}
	defer r.close()
	r.Replace("", byName(o.network(n)))
	r.settle(b.Context())
	var wall, cpu time.Duration
	var mallocs, rounds uint64
	for b.Loop() {
		for range 5 {
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begin, used := time.Now(), cpuTime()
			r.audit.at = begin
			r.work(b.Context())
			r.audited(b.Context())
			wall, cpu = wall+time.Since(begin), cpu+cpuTime()-used
			runtime.ReadMemStats(&after)
			mallocs += after.Mallocs - before.Mallocs
			rounds++
		}
	}
	b.ReportMetric(float64(wall.Microseconds())/1000/float64(rounds), "ms/audit")
	b.ReportMetric(float64(cpu.Microseconds())/1000/float64(rounds), "cpu-ms/audit")
	b.ReportMetric(float64(mallocs/rounds), "allocs/audit")
	return wall / time.Duration(rounds)
}

// waitTime is the longest time of ten, in milliseconds, that one more peer waited: in the midst of an audit that takes so
// long, or without one.
func waitTime(r *running, o overlay, n int, audit time.Duration) float64 {
	var longest time.Duration
	for i := range 10 {
		if audit > 0 {
			time.Sleep(11 * healDelay) // the least between two audits
			r.watch.mu.Lock()
			r.watch.Lose()
			r.watch.mu.Unlock()
			time.Sleep(audit * time.Duration(i) / 10)
		}
		begin := time.Now()
		r.Update("", []Claim{{"one", o.peer(n + 1)}})
		r.inStep()
		longest = max(longest, time.Since(begin))
		r.Update("", []Claim{{"one", nil}})
		r.inStep()
	}
	return float64(longest.Microseconds()) / 1000
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
