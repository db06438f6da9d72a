package extension

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestMain is also what the tests' commands are kept by, and what TestDaemonDies kills.
func TestMain(m *testing.M) {
	if Keeping() {
		os.Exit(Keep())
	}
	if text := os.Getenv("RUN_AND_DIE"); text != "" {
		_, _ = run{text: text}.do(context.Background())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// script writes a program, and returns where it is.
func script(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+strings.Join(lines, "\n")+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in twenty seconds: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Values are never taken for words, nor words for a shell's: each is an argument as it is.
func TestNoInjection(t *testing.T) {
	t.Parallel()
	r := run{
		text: script(t, `for a; do echo "<$a>"; done; cat; echo "$PEER"`) + " a  $PEER ${PEER}x $NONE ;",
		vars: []string{"PEER=1; touch /nonexistent/never $(touch /nonexistent/never) ' \""}, stdin: []byte("told; $(false)\n"),
	}
	got, err := r.do(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := `<a>
<1; touch /nonexistent/never $(touch /nonexistent/never) ' ">
<1; touch /nonexistent/never $(touch /nonexistent/never) ' "x>
<>
<;>
told; $(false)
1; touch /nonexistent/never $(touch /nonexistent/never) ' "`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// What is between the daemon and systemd, and what is the daemon's alone, is not for commands.
func TestEnvironment(t *testing.T) {
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "OVERLAYD_ETCD_PASSWORD_FILE", "AWS_PROFILE"} {
		t.Setenv(name, "x")
	}
	got, err := run{text: "env", vars: []string{"SUBNET=10.5.1.0/24"}}.do(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"NOTIFY_SOCKET": false, "WATCHDOG_USEC": false, "OVERLAYD_ETCD_PASSWORD_FILE": false, "AWS_PROFILE": true, "PATH": true, "SUBNET": true} {
		if has := strings.Contains("\n"+got, "\n"+name+"="); has != want {
			t.Errorf("%s: %t, want %t", name, has, want)
		}
		if value := (run{}).lookup(name); name != "SUBNET" && (value != "") != want { // it would be in the command's arguments
			t.Errorf("$%s is %q, and may be known: %t", name, value, want)
		}
	}
}

// nap is a command that writes down who it and its children are, one of which has left the session and another the family.
func nap(t *testing.T) (text string, pids func() []int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pids")
	text = script(t,
		`echo $$ >>`+file,
		`sleep 1000 & echo $! >>`+file,
		`setsid sh -c 'echo $$ >>`+file+`; sleep 1000' &`,
		`(setsid sh -c 'setsid sleep 1000 & echo $! >>`+file+`' &)`,
		`sleep 1000`)
	return text, func() (pids []int) {
		data, _ := os.ReadFile(file)
		for _, line := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(line)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
		return pids
	}
}

func alive(pids []int) (n int) {
	for _, pid := range pids {
		if syscall.Kill(pid, 0) == nil {
			n++
		}
	}
	return n
}

func TestKilledWithItsChildren(t *testing.T) {
	t.Parallel()
	text, pids := nap(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { _, err := run{text: text}.do(ctx); done <- err }()
	eventually(t, "all sleep", func() bool { return len(pids()) == 4 && alive(pids()) == 4 })
	cancel()
	if err := <-done; err == nil {
		t.Error("no error")
	}
	if n := alive(pids()); n > 0 {
		t.Errorf("%d of %v live", n, pids())
	}
}

func TestTakesTooLong(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := (run{text: "sleep 1000"}).do(ctx); err == nil || err.Error() != "took too long, and was killed" {
		t.Errorf("got %v", err)
	}
}

// A command that has ended leaves nothing running that holds its output, or goes on without anybody knowing.
func TestLeavesNothing(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	got, err := run{text: script(t, `setsid sleep 1000 & echo $!`)}.do(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(got)
	if err != nil || alive([]int{pid}) > 0 {
		t.Errorf("%q lives (%v)", got, err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestDaemonDies(t *testing.T) {
	t.Parallel()
	text, pids := nap(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "RUN_AND_DIE="+text)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all sleep", func() bool { return len(pids()) == 4 && alive(pids()) == 4 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "all are dead", func() bool { return alive(pids()) == 0 })
}

// Who ends a keeper, an operator or a supervisor that ends all there is, ends what it keeps.
func TestKeeperIsEnded(t *testing.T) {
	t.Parallel()
	text, pids := nap(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "RUN_AND_DIE="+text)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all sleep", func() bool { return len(pids()) == 4 && alive(pids()) == 4 })
	for _, keeper := range children(cmd.Process.Pid) {
		if err := syscall.Kill(keeper, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	_ = cmd.Wait()
	eventually(t, "all are dead", func() bool { return alive(pids()) == 0 })
}

func TestOutputIsBounded(t *testing.T) {
	t.Parallel()
	got, err := run{text: "head -c 50000000 /dev/zero"}.do(t.Context())
	if err != nil || len(got) != mostOutput {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"/no/such": "exit status 127: exec: \"/no/such\": stat /no/such: no such file or directory",
		script(t, "echo out; echo why >&2", "exit 3"): "exit status 3: why",
		"/etc/passwd":           "exit status 127: exec: \"/etc/passwd\": permission denied",
		script(t, "kill -9 $$"): "exit status 137",
	} {
		if _, err := (run{text: text}).do(t.Context()); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func TestCheckRefusesShell(t *testing.T) {
	t.Parallel()
	for text, bad := range map[string]bool{
		"": false, "/x $SUBNET --to ${PUBLIC_IP}": false, "  ": true, "export A=1; /x": true, "/x | /y": true, "/x && /y": true,
		"sh -c 'x y'": true, "/x $(y)": true, "/x >/y": false, "/x > /y": true, "/x\x00": true,
	} {
		if err := (Commands{Sync: text}).Check(); (err != nil) != bad {
			t.Errorf("%q: %v", text, err)
		}
	}
}
