package integration

import (
	"os/exec"
	"testing"

	"github.com/overlayd/overlayd/integration/internal/proc"
)

// Process is a program that runs inside a node until it is stopped or the test ends.
type Process = proc.Process

// Spawn starts a program inside the node; env is added to the test's own environment.
func (n *Node) Spawn(name string, env []string, args ...string) *Process {
	n.t.Helper()
	return spawn(n.t, n.Command(args...), name, env)
}

func spawn(t testing.TB, cmd *exec.Cmd, name string, env []string) *Process {
	t.Helper()
	return proc.Start(t, cmd, name, env, patience)
}
