package integration

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that runs inside a node until it is stopped or the test ends.
type Process struct {
	t      testing.TB
	cmd    *exec.Cmd
	name   string
	Output *output
	done   chan struct{} // closed once the process has ended
}

// Spawn starts a program inside the node; env is added to the test's own environment.
func (n *Node) Spawn(name string, env []string, args ...string) *Process {
	n.t.Helper()
	return spawn(n.t, n.Command(args...), name, env)
}

func spawn(t testing.TB, cmd *exec.Cmd, name string, env []string) *Process {
	t.Helper()
	cmd.Env = append(cmd.Env, env...)
	p := &Process{t: t, cmd: cmd, name: name, Output: &output{}, done: make(chan struct{})}
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
			t.Logf("--- %s (exit %d)\n%s", name, cmd.ProcessState.ExitCode(), tail(out, 200))
		}
	})
	return p
}

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
	case <-time.After(patience):
		p.t.Fatalf("%s still runs:\n%s", p.name, tail(p.Output.String(), 20))
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

// output collects what a process writes while the test reads along.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
