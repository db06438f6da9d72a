package leasecache

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

func mustPrefix(s string) netip.Prefix        { return netip.MustParsePrefix(s) }
func mustAddr(s string) netip.Addr            { return netip.MustParseAddr(s) }
func equalAddrs(a, b netip.Addr) bool         { return a == b }
func equalPrefixes(a, b netip.Prefix) bool    { return a == b }
func at(dir string) string                    { return filepath.Join(dir, Name) }
func put(t testing.TB, path string, b []byte) { t.Helper(); must(t, os.WriteFile(path, b, 0o600)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func contents(t testing.TB, dir string) []byte {
	t.Helper()
	b, err := os.ReadFile(at(dir))
	must(t, err)
	return b
}

// history notes four changes of peers, each of which is two lines, and then that the own lease is lost, which is the
// tenth line. after is what is known of the peers after so many changes.
func history(t *testing.T, dir string, k *clock) (file []byte, after [][]string) {
	t.Helper()
	c, _ := open(t, dir, k)
	c.Held(*record(1000, 1), noon.Add(time.Hour), nic)
	flush(t, c)
	known := map[string]*subnet.Record{}
	after = append(after, nil)
	for i := range 4 {
		r := record(i%2+1, int64(i+1))
		key := r.Key()
		if known[key] = r; i == 2 {
			delete(known, key)
			r = nil
		}
		c.Peers(map[string]*subnet.Record{key: r})
		flush(t, c)
		after = append(after, keys(View{Peers: values(known)}))
	}
	must(t, c.Lost("gone"))
	file = contents(t, dir)
	if lines := bytes.Count(file, []byte("\n")); lines != 10 {
		t.Fatalf("the history has %d lines:\n%s", lines, file)
	}
	return file, after
}

// readable is what is to be read of the first so many lines of the history.
func readable(after [][]string, lines int) (peers []string, held bool) {
	return after[max(lines-1, 0)/2], lines > 0 && lines < 10
}

// TestTornFile cuts a file at every byte: what is read is what its whole lines say.
func TestTornFile(t *testing.T) {
	t.Parallel()
	k := newClock()
	file, after := history(t, t.TempDir(), k)
	dir := t.TempDir()
	for size := range len(file) + 1 {
		put(t, at(dir), file[:size])
		v := Read(dir, host, k.now())
		peers, held := readable(after, bytes.Count(file[:size], []byte("\n")))
		if diff := cmp.Diff(peers, keys(v), cmpopts.EquateEmpty()); diff != "" || (v.Own != nil) != held {
			t.Fatalf("%d of %d bytes: held %v, want %t (%s); peers (-want +got):\n%s", size, len(file), v.Own, held, v.Reason, diff)
		}
	}
}

// TestDamagedFile has a zero in place of each byte of a file, one at a time, as a power loss leaves what was not written:
// what stands before the line is read, and the own lease does not count, since what is not read may have said so. Nor
// does it when the daemon that saw it has ended.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	k := newClock()
	file, after := history(t, t.TempDir(), k)
	dir := t.TempDir()
	for i := range file {
		damaged := bytes.Clone(file)
		damaged[i] = 0
		put(t, at(dir), damaged)
		v := Read(dir, host, k.now())
		if i == len(file)-1 { // the last line has no end now, as if it were torn
			continue
		}
		peers, _ := readable(after, bytes.Count(file[:i], []byte("\n")))
		if diff := cmp.Diff(peers, keys(v), cmpopts.EquateEmpty()); diff != "" || v.Own != nil || !strings.Contains(v.Reason, "damaged") {
			t.Fatalf("byte %d of %d: %+v, peers (-want +got):\n%s", i, len(file), v, diff)
		}
		if i%97 == 0 {
			c, _ := open(t, dir, k)
			flush(t, c)
			if v := Read(dir, host, k.now()); v.Own != nil || len(keys(v)) != len(peers) {
				t.Fatalf("byte %d of %d, written anew: %+v", i, len(file), v)
			}
		}
	}
}

// TestNoFile is of everything that may be in the file's place. None stops a start, none is followed, and what can be
// replaced is.
func TestNoFile(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	k := newClock()
	history(t, filepath.Dir(secret), k)
	must(t, os.Rename(at(filepath.Dir(secret)), secret))
	before, err := os.ReadFile(secret)
	must(t, err)
	for name, test := range map[string]struct {
		make  func(path string) error
		want  string
		stays bool
	}{
		"nothing":       {func(string) error { return nil }, "no lease is remembered", false},
		"no bytes":      {func(p string) error { return os.WriteFile(p, nil, 0o600) }, "no lease is remembered", false},
		"zeroes":        {func(p string) error { return os.WriteFile(p, make([]byte, 5000), 0o600) }, "no lease is remembered", false},
		"many zeroes":   {func(p string) error { return os.WriteFile(p, make([]byte, 5<<20), 0o600) }, "damaged", false},
		"another file":  {func(p string) error { return os.WriteFile(p, []byte("{\"config\":null,\n\n"), 0o600) }, "damaged", false},
		"a huge file":   {func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, 1<<40)) }, "is not a file of at most", false},
		"a symlink":     {func(p string) error { return os.Symlink(secret, p) }, "cannot be read", false},
		"a FIFO":        {func(p string) error { return unix.Mkfifo(p, 0o600) }, "is not a file of at most", false},
		"a directory":   {func(p string) error { return os.Mkdir(p, 0o700) }, "is not a file of at most", true},
		"a symlink new": {func(p string) error { return os.Symlink(secret, p+".new") }, "no lease is remembered", false},
		"a file new":    {func(p string) error { return os.WriteFile(p+".new", []byte("old"), 0o644) }, "no lease is remembered", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			must(t, test.make(at(dir)))
			c, v := open(t, dir, k)
			if v.Own != nil || len(v.Peers) != 0 || !strings.Contains(v.Reason, test.want) {
				t.Errorf("it says %+v, want %q", v, test.want)
			}
			c.Held(*record(7, 7), noon.Add(time.Hour), nic)
			err := c.flush(false)
			if (err != nil) != test.stays || (c.Err() != nil) != test.stays {
				t.Errorf("writing: %v, Err() %v", err, c.Err())
			}
			if v := Read(dir, host, k.now()); (v.Own == nil) != test.stays {
				t.Errorf("afterwards: %+v", v)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Errorf("the directory holds %v (%v)", entries, err)
			}
			if now, err := os.ReadFile(secret); err != nil || !bytes.Equal(now, before) {
				t.Errorf("the file that a symlink led to was changed (%v)", err)
			}
		})
	}
}

// TestALineOfAnotherVersion is whole, but of no form that this version knows: nothing after it is read.
func TestALineOfAnotherVersion(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	c, _ := open(t, dir, k)
	c.Held(*record(7, 7), noon.Add(time.Hour), nic)
	flush(t, c)
	_, err := c.file.WriteString("{\"Known\":{\"Own\":7}}\n")
	must(t, err)
	c.Peers(records(2000)) // more than is read at once
	must(t, c.append(false, false))
	if v := Read(dir, host, k.now()); v.Own != nil || len(v.Peers) != 0 || !strings.Contains(v.Reason, "damaged") {
		t.Errorf("%d peers, own %v, %s", len(v.Peers), v.Own, v.Reason)
	}
}

// TestALeaseOfOtherRules is a remembered peer whom this version does not take for a lease.
func TestALeaseOfOtherRules(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	c, _ := open(t, dir, k)
	bad := record(2, 2)
	bad.Endpoints[0].PublicIP = mustAddr("127.0.0.1")
	c.Held(*record(7, 7), noon.Add(time.Hour), nic)
	c.Peers(map[string]*subnet.Record{"10.0.1.0-24": record(1, 1), "10.0.2.0-24": bad})
	flush(t, c)
	if v := Read(dir, host, k.now()); v.Own == nil || len(v.Peers) != 1 {
		t.Errorf("%+v", v)
	}
}
