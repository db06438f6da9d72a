package enrol

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReplayedTicket shows tickets that were given for another key, for another server, or long ago.
func TestReplayedTicket(t *testing.T) {
	t.Parallel()
	now, key := time.Now(), []byte("key")
	ip := netip.MustParseAddr("192.0.2.1")
	a, b := newTickets(), newTickets()
	good := a.issue(key, ip, now)
	if got, ok := a.address(key, good, now); !ok || got != ip {
		t.Errorf("a good one is for %s, %t", got, ok)
	}
	for name, try := range map[string]func() (netip.Addr, bool){
		"another key":    func() (netip.Addr, bool) { return a.address([]byte("kez"), good, now) },
		"another server": func() (netip.Addr, bool) { return b.address(key, good, now) },
		"later":          func() (netip.Addr, bool) { return a.address(key, good, now.Add(ticketLife+time.Second)) },
		"changed": func() (netip.Addr, bool) {
			return a.address(key, strings.Replace(good, "192.0.2.1", "192.0.2.2", 1), now)
		},
		"empty":   func() (netip.Addr, bool) { return a.address(key, "", now) },
		"garbage": func() (netip.Addr, bool) { return a.address(key, "  a b ", now) },
	} {
		if got, ok := try(); ok {
			t.Errorf("%s: it is taken for %s", name, got)
		}
	}
}

// TestPlanted writes where the daemon's user, who may be broken into, has put links to what is root's.
func TestPlanted(t *testing.T) {
	t.Parallel()
	dir, precious := t.TempDir(), filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, []byte("root's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, Dir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{HostFile, HostFile + ".new"} {
		if err := os.Symlink(precious, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	writeState(t, dir, HostFile, []byte("certificate"))
	if got := readFile(t, precious); string(got) != "root's" {
		t.Errorf("written through a link: %q", got)
	}
	if info, err := os.Lstat(filepath.Join(dir, HostFile)); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v", info, err)
	}

	// The directory itself.
	led := t.TempDir()
	if err := os.Symlink(filepath.Dir(precious), filepath.Join(led, Dir)); err != nil {
		t.Fatal(err)
	}
	files, err := OpenFiles(led)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Root.Close()
	if _, err := files.Write(HostFile, []byte("certificate"), 0o400); err == nil {
		t.Error("written into a directory to which a link leads")
	}
	if entries, err := os.ReadDir(filepath.Dir(precious)); err != nil || len(entries) != 1 {
		t.Errorf("there are %v, %v", entries, err)
	}
}
