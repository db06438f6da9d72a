package etcdembed

import (
	"bufio"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	clientv3 "go.etcd.io/etcd/client/v3"
)

// crashDir tells a copy of the test binary to serve etcd from there until it is killed.
const crashDir = "ETCDEMBED_CRASH_DIR"

// checkpointInterval is etcd's, which has no setting for it: five minutes are too long for a test.
//
//go:linkname checkpointInterval go.etcd.io/etcd/server/v3/lease.defaultLeaseCheckpointInterval
var checkpointInterval time.Duration

func TestMain(m *testing.M) {
	checkpointInterval = time.Second
	dir := os.Getenv(crashDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := Start(context.Background(), Config{Dir: dir, Listen: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString(s.Endpoint() + "\n")
	time.Sleep(time.Minute) // longer than the parent lets it
}

// What was written is there after a kill -9.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	endpoint := startChild(t, cmd)
	if _, err := dialTo(t, endpoint).Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(endpoint, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()

	got, err := dialTo(t, start(t, Config{Dir: dir}).Endpoint()).Get(t.Context(), "k")
	if err != nil || len(got.Kvs) != 1 {
		t.Errorf("after the crash: %v, %v", got, err)
	}
}

// startChild starts a copy of the test binary that serves etcd, and returns its endpoint.
func startChild(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(line, err)
	}
	return strings.TrimSpace(line)
}

// TestRestartsDoNotRevive restarts etcd ever again before the TTL of a dead host's lease is over: the lease ends.
func TestRestartsDoNotRevive(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), UnsafeNoFsync: true}
	const ttl = 5
	var id clientv3.LeaseID
	for range 20 {
		s := start(t, cfg)
		c := dial(t, s)
		if id == 0 {
			granted, err := c.Grant(t.Context(), ttl)
			if err != nil {
				t.Fatal(err)
			}
			id = granted.ID
		}
		begin := remaining(t, c, id)
		left := begin
		for ; left > begin-3 && left >= 0; left = remaining(t, c, id) {
			time.Sleep(20 * time.Millisecond)
		}
		if left < 0 {
			return
		}
		s.Close()
	}
	t.Errorf("a lease of %d s is still there after 20 restarts, each some two seconds after the last one", ttl)
}

// remaining is what is left of a lease's TTL, in seconds; -1 if it has ended.
func remaining(t *testing.T, c *clientv3.Client, id clientv3.LeaseID) int64 {
	t.Helper()
	l, err := c.TimeToLive(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return l.TTL
}
