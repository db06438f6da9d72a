package etcdembed

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestEmptyFilesOfEtcd: a power loss may leave files empty. What etcd does not recover from is named, with what to do.
func TestEmptyFilesOfEtcd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, Config{Dir: dir, UnsafeNoFsync: true})
	c := dial(t, s)
	if _, err := c.Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	wal, err := filepath.Glob(filepath.Join(dir, "data/member/wal/*.wal"))
	if err != nil || len(wal) != 1 {
		t.Fatal(wal, err)
	}
	db := filepath.Join(dir, "data/member/snap/db")
	snap := filepath.Join(dir, "data/member/snap/0000000000000002-0000000000002711.snap")
	for name, files := range map[string][]string{"WAL": wal, "backend": {db}, "backend after a snapshot": {snap, db}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			copied := t.TempDir()
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			var empty string
			for _, file := range files {
				empty = copied + strings.TrimPrefix(file, dir)
				if err := os.WriteFile(empty, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if name == "backend" { // etcd makes it anew from its WAL
				got, err := dial(t, start(t, Config{Dir: copied})).Get(t.Context(), "k")
				if err != nil || len(got.Kvs) != 1 {
					t.Errorf("it holds %v, %v", got, err)
				}
				return
			}
			_, err := Start(t.Context(), Config{Dir: copied, Listen: "127.0.0.1:0"})
			want := empty + " is empty, as a power loss may leave it: bring " + filepath.Join(copied, "data") + " back from a backup, or remove it"
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("Start() = %v, want %s", err, want)
			}
			if err := os.RemoveAll(filepath.Join(copied, "data")); err != nil {
				t.Fatal(err)
			}
			start(t, Config{Dir: copied})
		})
	}
}

// TestEtcdOnAFullDisk does not start there, in a line that says why; what it has acknowledged is there when there is room again.
func TestEtcdOnAFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=200m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	ballast := filepath.Join(dir, "ballast")
	fill := func(but int64) {
		_ = os.WriteFile(ballast, make([]byte, 200<<20), 0o600)
		info, err := os.Stat(ballast)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(ballast, info.Size()-but); err != nil {
			t.Fatal(err)
		}
	}
	// A child, for etcd ends the process when it cannot write any more, and keeps its files open when it fails to start.
	child := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		return cmd
	}
	refuses := func() {
		t.Helper()
		out, err := child().CombinedOutput()
		said := string(out)
		if err == nil || !strings.Contains(said, dir) || !strings.Contains(said, "no space left on device") || strings.Contains(said, "goroutine") {
			t.Errorf("Start() on a full disk: %v\n%s", err, said)
		}
	}
	for _, room := range []int64{0, 5 << 20} {
		fill(room)
		refuses()
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}

	cmd := child()
	c := dialTo(t, startChild(t, cmd))
	var acknowledged int64
	for i := 0; ; i++ {
		if i == 10 {
			fill(0)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // etcd's client never gives up
		put, err := c.Put(ctx, "k", strings.Repeat("x", 1<<20))
		cancel()
		if err != nil {
			break
		}
		acknowledged = put.Header.Revision
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	refuses()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	got, err := dial(t, start(t, Config{Dir: dir})).Get(t.Context(), "k", clientv3.WithKeysOnly())
	if err != nil || len(got.Kvs) != 1 || got.Kvs[0].ModRevision < acknowledged {
		t.Errorf("with room again: %v, %v; revision %d was acknowledged", got, err, acknowledged)
	}
}
