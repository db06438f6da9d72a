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

	"github.com/overlayd/overlayd/subnet"
)

// TestFullDisk fills a disk under a cache: the old file stays whole, and when there is room again all is written.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir, _ := smallDisk(t, "256k")
	k := newClock()
	c, _ := open(t, dir, k)
	c.Config([]byte(raw), 7)
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
			for i := range 100 {
				r := record(500+i, 1)
				more[r.Key()] = r
			}
			c.Peers(more)
			if c.flush(false) == nil { // so that the page that the file ends in has no room for it
				t.Fatal("flush() on a full disk = nil")
			}
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
	c.Config([]byte(raw), 7)
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
		func(i int) { c.Config(fmt.Appendf(nil, "config %d", i), 7) },
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
	c, v := Open(dir, host, Now)
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
