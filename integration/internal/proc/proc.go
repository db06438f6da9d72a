// Package proc has what both packages of integration tests run: programs in network namespaces, which end with their test.
package proc

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that runs until it is stopped or the test ends.
type Process struct {
	t        testing.TB
	patience time.Duration
	cmd      *exec.Cmd
	name     string
	Output   *Output
	done     chan struct{} // closed once the process has ended
}

// Command is a command to be run inside a network namespace. It gets a process group of its own, and dies with the test.
func Command(netns string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + NetnsDir + "/" + netns, "--"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "OVERLAYD_") })
	cmd.Env = append(cmd.Env, "GORACE=atexit_sleep_ms=0") // the race detector's second would be in every exit
	return cmd
}

// Start starts a program; env is added to its environment. Patience is how long Wait and Stop wait before the test fails.
func Start(t testing.TB, cmd *exec.Cmd, name string, env []string, patience time.Duration) *Process {
	t.Helper()
	cmd.Env = append(cmd.Env, env...)
	p := &Process{t: t, patience: patience, cmd: cmd, name: name, Output: &Output{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.Output, p.Output
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // the exit code is in ProcessState
	}()
	t.Cleanup(func() {
		p.Kill()
		out := p.Output.String()
		if strings.Contains(out, "WARNING: DATA RACE") {
			t.Errorf("%s has a data race", name)
		}
		if t.Failed() {
			t.Logf("--- %s (exit %d)\n%s", name, cmd.ProcessState.ExitCode(), Tail(out, 200))
		}
	})
	return p
}

// Pid is the process's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed once the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the process alone.
func (p *Process) Signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("%s: %v: %v", p.name, sig, err)
	}
}

// Stop sends a signal, waits for the end and returns the exit code and how long the end took.
func (p *Process) Stop(sig syscall.Signal) (code int, took time.Duration) {
	p.t.Helper()
	start := time.Now()
	p.Signal(sig)
	return p.Wait(), time.Since(start)
}

// Wait waits for the process to end by itself and returns its exit code.
func (p *Process) Wait() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(p.patience):
		p.t.Fatalf("%s still runs:\n%s", p.name, Tail(p.Output.String(), 20))
		return -1
	}
}

// Running tells whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends the process and its children, unkindly. One that has ended is no error.
func (p *Process) Kill() {
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		p.t.Errorf("kill %s: %v", p.name, err)
	}
	<-p.done
}

// Output collects what a process writes while the test reads along.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

// String is all that was written.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Tail is the last n lines of s.
func Tail(s string, n int) string {
	lines := strings.SplitAfter(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// Eventually polls until f returns nil, and fails the test with f's last error once patience ends.
func Eventually(t testing.TB, patience time.Duration, what string, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}
