package leasecache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/subnet"
)

// TestFullDisk fills a disk under a cache: the old file stays whole, and when there is room again all is written.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir, _ := smallDisk(t, "256k")
	k := newClock()
	c, _ := open(t, dir, k)
	c.Config([]byte(raw))
	c.Held(*record(1000, 1), noon.Add(time.Hour), nic)
	c.Peers(records(100))
	flush(t, c)
	first := Read(dir, host, k.now())
	free := fill(t, dir)
	for i := range 3 { // once to append, then to write it anew
		for j := range 20 {
			r := record(200+20*i+j, 1)
			c.Peers(map[string]*subnet.Record{r.Key(): r})
		}
		if err := c.flush(false); !errors.Is(err, syscall.ENOSPC) || !errors.Is(c.Err(), syscall.ENOSPC) {
			t.Fatalf("flush() on a full disk = %v, Err() %v", err, c.Err())
		}
		v := Read(dir, host, k.now())
		if v.Own == nil || len(v.Peers) < len(first.Peers) || string(v.Config) != raw {
			t.Errorf("a full disk cost what was remembered: %+v", v)
		}
	}
	free()
	flush(t, c)
	if v := Read(dir, host, k.now()); len(v.Peers) != 160 || v.Own == nil || c.Err() != nil {
		t.Errorf("with room again %d of 160 peers are remembered, own %v, Err() %v", len(v.Peers), v.Own, c.Err())
	}
}

// TestLostOnAFullDisk: what cannot be written is made true by remembering nothing.
func TestLostOnAFullDisk(t *testing.T) {
	t.Parallel()
	for name, notice := range map[string]func(*Cache) error{
		"lost":   func(c *Cache) error { return c.Lost("gone") },
		"forget": func(c *Cache) error { return c.Forget(host) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, _ := smallDisk(t, "256k")
			k := newClock()
			c, _ := open(t, dir, k)
			c.Held(*record(1000, 1), noon.Add(time.Hour), nic)
			c.Peers(records(300))
			flush(t, c)
			free := fill(t, dir)
			more := map[string]*subnet.Record{}
			for i := range 100 { // so that the page that the file ends in has no room for it
				r := record(500+i, 1)
				more[r.Key()] = r
			}
			c.Peers(more)
			if err := notice(c); err != nil || c.Err() == nil {
				t.Fatalf("on a full disk: %v, Err() %v", err, c.Err())
			}
			if v := Read(dir, host, k.now()); v.Own != nil {
				t.Errorf("the lost lease is served after a restart: %+v", v)
			}
			free()
			flush(t, c)
			if v := Read(dir, host, k.now()); v.Own != nil || len(v.Peers) != 400 || c.Err() != nil {
				t.Errorf("with room again: %+v, Err() %v", v, c.Err())
			}
		})
	}
}

// TestReadOnlyDisk can be read from, tells that it cannot be written to, and heals.
func TestReadOnlyDisk(t *testing.T) {
	t.Parallel()
	dir, readOnly := smallDisk(t, "1m")
	k := newClock()
	c, _ := open(t, dir, k)
	c.Held(*record(1000, 1), noon.Add(time.Hour), nic)
	c.Peers(records(10))
	flush(t, c)
	c.close()
	readOnly(true)
	c, v := open(t, dir, k)
	if v.Own == nil || len(v.Peers) != 10 {
		t.Errorf("a read-only disk gave %+v", v)
	}
	c.every = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	c.Peers(records(11))
	eventually(t, "Err() tells of the read-only disk", func() bool { return errors.Is(c.Err(), syscall.EROFS) })
	if err := c.Lost("gone"); !errors.Is(err, syscall.EROFS) {
		t.Errorf("Lost() on a read-only disk = %v", err)
	}
	readOnly(false)
	eventually(t, "the cache heals", func() bool { return c.Err() == nil })
	if v := Read(dir, host, k.now()); v.Own != nil || len(v.Peers) != 11 {
		t.Errorf("after it healed: %+v", v)
	}
	cancel()
	must(t, <-done)
}

// TestRunWritesWhatIsNoted without being asked, at the end too, and tells when the lease ends.
func TestRunWritesWhatIsNoted(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	c, _ := open(t, dir, k)
	c.every = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	read := func() View { return Read(dir, host, k.now()) }
	c.Held(*record(7, 7), noon.Add(time.Hour), nic)
	eventually(t, "the lease is written", func() bool { return read().Own != nil })
	c.Config([]byte(raw))
	eventually(t, "the config is written", func() bool { return string(read().Config) == raw })
	k.pass(time.Hour)
	eventually(t, "the end of the lease is written", func() bool { return strings.Contains(string(contents(t, dir)), "ended at") })
	cancel()
	must(t, <-done)

	c, _ = open(t, dir, k)
	c.every = time.Hour // nothing is written before the end
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- c.Run(ctx) }()
	c.Peers(records(50))
	cancel()
	must(t, <-done)
	if v := read(); len(v.Peers) != 50 {
		t.Errorf("%d of 50 peers were written at the end", len(v.Peers))
	}
	c.Held(*record(7, 7), noon.Add(10*time.Hour), nic)
	must(t, c.Lost("after the end"))
	if v := read(); !strings.Contains(v.Reason, "after the end") {
		t.Errorf("Lost() after Run: %+v", v)
	}
}

// TestSideBySide is for the race detector.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	c, _ := open(t, dir, k)
	c.every = 10 * time.Microsecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	var notes sync.WaitGroup
	for _, note := range []func(i int){
		func(i int) { c.Held(*record(1000, int64(i/10)), noon.Add(time.Duration(i)*time.Second), nic) },
		func(i int) { c.Config(fmt.Appendf(nil, "config %d", i)) },
		func(i int) { r := record(i%7+1, int64(i)); c.Peers(map[string]*subnet.Record{r.Key(): r}) },
		func(i int) { k.pass(time.Duration(i%20/19) * time.Hour) },
		func(i int) { must(t, c.Lost("gone")) },
		func(int) { must(t, c.Err()) },
	} {
		notes.Go(func() {
			for i := range 200 {
				note(i)
			}
		})
	}
	notes.Wait()
	cancel()
	must(t, <-done)
	if v := Read(dir, host, k.now()); string(v.Config) != "config 199" || len(v.Peers) != 7 {
		t.Errorf("after all that: %+v", v)
	}
}

// TestKilled kills a daemon at any moment of its writing. After each kill what is read is what was noted of each lease
// at some time, no older than what the last start found, and a lease that Lost returned for is lost.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var last View
	for round := range 25 {
		child := exec.Command(os.Args[0], "-test.run=^TestKilledChild$")
		child.Env = append(os.Environ(), "LEASECACHE_CHILD="+dir)
		out, err := child.StdoutPipe()
		must(t, err)
		must(t, child.Start())
		lines := bufio.NewScanner(out)
		said := ""
		for range 1 + rand.IntN(40) {
			if !lines.Scan() {
				break
			}
			said = lines.Text()
		}
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
		must(t, child.Process.Kill())
		for lines.Scan() { // what it said until it died
			said = lines.Text()
		}
		child.Wait()
		v := Read(dir, host, Now())
		if strings.Contains(v.Reason, "damaged") {
			t.Fatalf("round %d: %s", round, v.Reason)
		}
		if v.Own != nil && said == "lost" {
			t.Fatalf("round %d: the lease counts after Lost returned", round)
		}
		if len(v.Peers) < len(last.Peers) || newest(v) < newest(last) {
			t.Fatalf("round %d: %d peers, the newest of revision %d; before it was killed: %d, %d",
				round, len(v.Peers), newest(v), len(last.Peers), newest(last))
		}
		last = v
	}
	if newest(last) < 100 {
		t.Errorf("the children wrote no more than revision %d", newest(last))
	}
}

func newest(v View) (revision int64) {
	for _, r := range v.Peers {
		revision = max(revision, r.ModRevision)
	}
	return revision
}

// TestKilledChild is the daemon of TestKilled; without that it has nothing to do.
func TestKilledChild(t *testing.T) {
	dir := os.Getenv("LEASECACHE_CHILD")
	if dir == "" {
		return
	}
	c, v := Open(dir, host, Now, discard())
	c.every = 100 * time.Microsecond
	go c.Run(t.Context())
	for revision := newest(v) + 1; ; revision++ {
		r := record(int(revision%200)+1, revision)
		c.Peers(map[string]*subnet.Record{r.Key(): r})
		switch revision % 16 {
		case 0:
			fmt.Println("held")
			c.Held(*record(1000, revision), time.Now().Add(time.Hour), nic)
		case 8:
			if err := c.Lost("gone"); err != nil {
				t.Fatal(err)
			}
			fmt.Println("lost")
		}
		time.Sleep(20 * time.Microsecond)
	}
}

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
	for what, note := range map[string]func(){
		"peers":  func() { c.Peers(records(10)) },
		"config": func() { c.Config([]byte(raw)) },
		"held":   func() { c.Held(*record(1000, 1), noon.Add(time.Hour), nic) },
		"lost":   func() { must(t, c.Lost("gone")) },
	} {
		note()
		flush(t, c)
		before := contents(t, dir)
		note()
		flush(t, c)
		if diff := cmp.Diff(string(before), string(contents(t, dir))); diff != "" {
			t.Errorf("%s: wrote what was known (-before +after):\n%s", what, diff)
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
	b.Logf("written whole in %s: %d bytes", time.Since(start), c.tail.size)
	b.SetBytes(c.tail.size)
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
