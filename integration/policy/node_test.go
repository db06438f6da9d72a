package policy

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/integration/internal/proc"
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

func (n *node) path() string { return proc.NetnsDir + "/" + n.name }

func (n *node) command(args ...string) *exec.Cmd { return proc.Command(n.name, args...) }

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
func (n *node) do(f func() error) error { return proc.Do(n.name, f) }

// spawn starts a program inside the node.
func (n *node) spawn(name string, args ...string) *proc.Process {
	n.t.Helper()
	return proc.Start(n.t, n.command(args...), name, nil, patience)
}

func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	proc.Eventually(t, patience, what, f)
}
