package etcdembed

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// crashDir tells a copy of the test binary to serve etcd from there until it is killed.
const crashDir = "ETCDEMBED_CRASH_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := Start(context.Background(), Config{Dir: dir, Listen: "127.0.0.1:0"})
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString(s.Endpoint() + "\n")
	time.Sleep(time.Minute) // longer than the parent lets it
}

// What was written is there after a kill -9, and the lock of the dead process is no obstacle.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
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
	if _, err := dialTo(t, strings.TrimSpace(line)).Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(line, err)
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
