package policy

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// patience is how long a test waits for what has to happen.
const patience = 30 * time.Second

// node is a network namespace: a host, a container, a wire.
type node struct {
	t    testing.TB
	name string // of the namespace
}

// newNode makes a namespace with loopback up; it goes away with the test.
func newNode(t testing.TB, name string) *node {
	t.Helper()
	n := &node{t: t, name: name}
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add %s: %v: %s", name, err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			t.Errorf("delete namespace %s: %v: %s", name, err, out)
		}
	})
	n.exec("ip", "link", "set", "lo", "up")
	return n
}

func (n *node) path() string { return netnsDir + "/" + n.name }

// command is a command to be run inside the node. It gets a process group of its own, and dies with the test.
func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + n.path(), "--"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "OVERLAYD_") })
	cmd.Env = append(cmd.Env, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// exec runs a command inside the node and returns its output; a failure ends the test.
func (n *node) exec(args ...string) string {
	n.t.Helper()
	out, err := n.try(args...)
	if err != nil {
		n.t.Fatalf("%s: %s: %v\n%s", n.name, strings.Join(args, " "), err, out)
	}
	return out
}

// try is exec for commands that may fail. It returns standard output and error as one.
func (n *node) try(args ...string) (string, error) {
	out, err := n.command(args...).CombinedOutput()
	return string(out), err
}

// do calls f on a thread that is inside the node. Sockets made by f stay in the node.
func (n *node) do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := netns.GetFromName(n.name)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", n.name, err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		return err
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(err) // the thread would carry on in the wrong namespace
		}
	}()
	return f()
}

// process is a program that runs inside a node until the test ends.
type process struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	output *output
	done   chan struct{} // closed once it has ended
}

// spawn starts a program inside the node.
func (n *node) spawn(name string, args ...string) *process {
	n.t.Helper()
	p := &process{t: n.t, name: name, cmd: n.command(args...), output: &output{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		n.t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit code is in ProcessState
	}()
	n.t.Cleanup(func() {
		p.kill()
		out := p.output.String()
		if strings.Contains(out, "WARNING: DATA RACE") {
			n.t.Errorf("%s has a data race", name)
		}
		if n.t.Failed() {
			lines := strings.SplitAfter(out, "\n")
			n.t.Logf("--- %s (exit %d)\n%s", name, p.cmd.ProcessState.ExitCode(), strings.Join(lines[max(0, len(lines)-100):], ""))
		}
	})
	return p
}

// kill ends the process and its children, unkindly. One that has ended is no error.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// signal sends a signal to the process alone.
func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("%s: %v: %v", p.name, sig, err)
	}
}

// stop sends a signal and waits for the end.
func (p *process) stop(sig syscall.Signal) {
	p.t.Helper()
	p.signal(sig)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s still runs", p.name)
	}
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

// eventually calls f until it is content, or fails the test with what it said last.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}
