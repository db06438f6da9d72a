package certs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestFullDisk leaves no half of a pair, and renewing leaves the old certificate.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	d := newDir(t)
	if err := errors.Join(os.Mkdir(d.Path, 0o700), syscall.Mount("tmpfs", d.Path, "tmpfs", 0, "size=64k")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(d.Path, syscall.MNT_DETACH) })
	addCA(t, d)
	issue(t, d, "a", Names{})
	for _, room := range []int{0, 4 << 10} { // none; for a key and not for its certificate
		ballast := filepath.Join(d.Path, "ballast")
		if err := os.WriteFile(ballast, make([]byte, 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		size, err := os.Stat(ballast)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(ballast, size.Size()-int64(room)); err != nil {
			t.Fatal(err)
		}
		before := content(t, d)
		if _, err := d.Issue("b", Names{}, year); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Issue() = %v", err)
		}
		if _, err := d.Renew("a", year); room == 0 && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Renew() = %v", err)
		}
		if diff := cmp.Diff(before, content(t, d)); room == 0 && diff != "" {
			t.Errorf("files (-before +after):\n%s", diff)
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
	issue(t, d, "b", Names{}) // nothing stands in the way
}

// TestEmptyFiles are named, with what to do.
func TestEmptyFiles(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"ca.crt", "ca.key", "a.crt", "a.key"} {
		d := newDir(t)
		addCA(t, d)
		issue(t, d, "a", Names{})
		path := filepath.Join(d.Path, file)
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Renew("a", year); err == nil || !strings.Contains(err.Error(), path+" is empty: bring it back from a backup, or ") {
			t.Errorf("Renew() with an empty %s = %v", file, err)
		}
	}
}
