package leasecache

import (
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/subnet"
)

// written follows what a cache writes to its file.
type written struct {
	path  string
	inode uint64
	size  int64
	bytes int64
	whole int // times that it was written anew
}

func (w *written) look(t testing.TB) {
	t.Helper()
	info, err := os.Stat(w.path)
	must(t, err)
	if inode := info.Sys().(*syscall.Stat_t).Ino; inode != w.inode {
		w.inode, w.size = inode, 0
		w.whole++
	}
	w.bytes += info.Size() - w.size
	w.size = info.Size()
}

// TestGrowth: what is written is in proportion to what changes, and the file to what is remembered.
func TestGrowth(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	c, _ := open(t, dir, k)
	const hosts, rounds, together = 1000, 400, 20
	c.Held(*record(hosts+1, 1), noon.Add(time.Hour), nic)
	c.Peers(records(hosts))
	flush(t, c)
	w := &written{path: at(dir)}
	w.look(t)
	whole, rng, noted := w.bytes, rand.New(rand.NewPCG(1, 2)), int64(0)
	w.bytes = 0
	for i := range rounds {
		changed := map[string]*subnet.Record{}
		for range together {
			r := record(rng.IntN(hosts)+1, int64(hosts+i))
			changed[r.Key()] = r
		}
		c.Peers(changed)
		flush(t, c)
		noted += int64(len(changed)) * whole / hosts
		if w.look(t); w.size > 3*whole {
			t.Fatalf("the file has %d bytes, the leases take %d", w.size, whole)
		}
	}
	if w.bytes > 3*noted || w.whole < 3 {
		t.Errorf("wrote %d bytes for changes of %d, %d times the whole", w.bytes, noted, w.whole)
	}
	if got := len(Read(dir, host, k.now()).Peers); got != hosts {
		t.Errorf("%d of %d peers are remembered", got, hosts)
	}
}

// TestNothingNewIsNotWritten: an etcd list after the start says again what is remembered.
func TestNothingNewIsNotWritten(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	c, _ := open(t, dir, k)
	for what, note := range []func(){
		func() { c.Peers(records(10)) },
		func() { c.Config([]byte(raw), 7) },
		func() { c.Held(*record(1000, 1), noon.Add(time.Hour), nic) },
		func() { must(t, c.Lost("gone")) },
	} {
		note()
		flush(t, c)
		before := contents(t, dir)
		note()
		flush(t, c)
		if diff := cmp.Diff(string(before), string(contents(t, dir))); diff != "" {
			t.Errorf("note %d: wrote what was known (-before +after):\n%s", what, diff)
		}
	}
}

// BenchmarkChurn is a day of a network of 10,000 hosts of which some change every 10 s, compared with what was written
// when each change wrote the whole after 10 s.
func BenchmarkChurn(b *testing.B) {
	const hosts = 10_000
	for _, together := range []int{1, 60, 600} {
		b.Run(fmt.Sprint(together), func(b *testing.B) {
			dir, k := b.TempDir(), newClock()
			c, _ := open(b, dir, k)
			c.Held(*record(hosts+1, 1), noon.Add(24*time.Hour), nic)
			c.Peers(records(hosts))
			flush(b, c)
			w := &written{path: at(dir)}
			w.look(b)
			old := float64(w.bytes)
			w.bytes = 0
			times, rng := 0, rand.New(rand.NewPCG(1, 2))
			for b.Loop() {
				for range 200_000 / (100 + together) {
					times++
					changed := make(map[string]*subnet.Record, together)
					for range together {
						r := record(rng.IntN(hosts)+1, int64(hosts+times))
						changed[r.Key()] = r
					}
					c.Peers(changed)
					flush(b, c)
					w.look(b)
				}
			}
			now := float64(w.bytes) / float64(times)
			b.ReportMetric(now/float64(together), "B/change")
			b.ReportMetric(now*8640/1e6, "MB/day")
			b.ReportMetric(old*8640/1e6, "MB/day-whole")
			b.ReportMetric(old/now, "whole/this")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func BenchmarkLoad60000(b *testing.B) {
	const hosts = 60_000
	dir, k := b.TempDir(), newClock()
	c, _ := open(b, dir, k)
	c.Held(*record(hosts+1, 1), noon.Add(24*time.Hour), nic)
	c.Peers(records(hosts))
	start := time.Now()
	flush(b, c)
	b.Logf("written whole in %s: %d bytes", time.Since(start), c.size)
	b.SetBytes(c.size)
	before := cpu(b)
	for b.Loop() {
		if v := Read(dir, host, k.now()); len(v.Peers) != hosts || v.Own == nil {
			b.Fatalf("%d of %d peers: %s", len(v.Peers), hosts, v.Reason)
		}
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// cpu is the time that this process has computed for.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
