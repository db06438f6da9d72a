package attachment

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// followed is a follower that runs for the length of a test.
type followed struct {
	*Follower
	t       *testing.T
	log     *lockedBuffer
	changed <-chan struct{}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func follow(t *testing.T, dir string) followed {
	t.Helper()
	log := &lockedBuffer{}
	f := followed{Follower: Follow(dir, slog.New(slog.NewTextHandler(log, nil))), t: t, log: log}
	f.changed = f.Changed()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("it does not end")
		}
	})
	return f
}

// want waits until these are the containers that there are.
func (f followed) want(ids ...string) {
	f.t.Helper()
	slices.Sort(ids)
	got, err := []string(nil), error(nil)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		var all []Attachment
		if all, err = f.Records(); err == nil {
			got = nil
			for _, a := range all {
				got = append(got, a.ContainerID)
			}
			if slices.Sort(got); slices.Equal(got, ids) {
				return
			}
		}
		select {
		case <-f.changed:
		case <-time.After(20 * time.Millisecond):
		}
	}
	f.t.Fatalf("records %v, %v; want %v\n%s", got, err, ids, f.log)
}

// save saves the record of a container as the plugin does.
func save(t *testing.T, dir, network, id string) {
	t.Helper()
	s, err := Create(t.Context(), dir, Shared, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Save(made(network, id)); err != nil {
		t.Fatal(err)
	}
}

func made(network, id string) Attachment {
	return Attachment{Version: Version, Network: network, ContainerID: id, IfName: "eth0", Delegate: json.RawMessage(`{"type":"bridge"}`)}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	dir := filepath.Join(top, "cni", "overlay")
	f := follow(t, dir)
	f.want() // there is no directory

	save(t, dir, "net", "a")
	f.want("a")
	save(t, dir, "net", "b")
	save(t, dir, "other", "c")
	f.want("a", "b", "c")
	if err := os.Remove(filepath.Join(dir, "net", "a:eth0.json")); err != nil {
		t.Fatal(err)
	}
	f.want("b", "c")

	if err := os.RemoveAll(filepath.Join(top, "cni")); err != nil {
		t.Fatal(err)
	}
	f.want()
	save(t, dir, "net", "d")
	f.want("d")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	f.want()
	save(t, dir, "net", "e")
	f.want("e")
	save(t, dir+".away", "net", "x")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	f.want("d", "x")
}

// What cannot be read is passed over and named once; once it can, it counts.
func TestFollowGarbage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	save(t, dir, "net", "a")
	bad := func(name string) string { return filepath.Join(dir, "net", name+":eth0.json") }
	for name, text := range map[string]string{"cut": `{"version":2,`, "empty": "", "newer": `{"version":9}`} {
		if err := os.WriteFile(bad(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", bad("link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(bad("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	earlier := made("net", "earlier")
	earlier.NetnsID = "another-boot/1"
	data, err := json.Marshal(earlier)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad("earlier"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	f := follow(t, dir)
	f.want("a")
	for range 3 {
		if err := os.Chmod(bad("cut"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	save(t, dir, "third", "b") // all is read again
	f.want("a", "b")
	if got := strings.Count(f.log.String(), "cannot be read"); got != 5 {
		t.Errorf("%d lines, want one for each of 5:\n%s", got, f.log)
	}
	save(t, dir, "net", "cut")
	f.want("a", "b", "cut")
}

// A thousand records are there at once, and what it costs to follow one of them does not grow with the others. More changes
// than the kernel keeps word of are not lost.
func TestFollowMany(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	save(t, dir, "net", "c0")
	s, err := Create(t.Context(), dir, Shared, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ids := map[string]bool{"c0": true}
	put := func(id string) {
		t.Helper()
		ids[id] = true
		if err := s.Save(made("net", id)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1000 {
		put(fmt.Sprint("c", i))
	}
	f := follow(t, dir)
	f.want(slices.Collect(maps.Keys(ids))...)
	f.hold(func() {
		for i := range 6000 { // five events each; max_queued_events is 16,384
			put(fmt.Sprint("c", i%1500))
		}
	})
	f.want(slices.Collect(maps.Keys(ids))...)
}

// hold does something while the follower cannot listen.
func (f followed) hold(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// While nothing happens nothing is done.
func TestFollowIdle(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, "net", "a")
	f := follow(t, dir)
	f.want("a")
	time.Sleep(100 * time.Millisecond) // for the last word on what was
	for len(f.changed) > 0 {
		<-f.changed
	}
	before := cpu(t)
	select {
	case <-f.changed:
		t.Error("a change, and nothing has changed")
	case <-time.After(time.Second):
	}
	if used := cpu(t) - before; used > 50*time.Millisecond {
		t.Errorf("it used %v of a CPU in a second", used)
	}
}

func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// What a caller's umask takes away does not hide the records from the daemon's group.
func TestUmask(t *testing.T) { // not parallel: it is the process's
	dir := filepath.Join(t.TempDir(), "overlay")
	defer unix.Umask(unix.Umask(0o077))
	s, err := Create(t.Context(), dir, Shared, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Save(Attachment{Network: "net", ContainerID: "c", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{".": os.ModeDir | dirMode, "net": os.ModeDir | dirMode, "net/c:eth0.json": fileMode} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
}
