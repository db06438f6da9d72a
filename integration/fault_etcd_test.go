package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// etcdServer is an etcd that a test can hurt.
type etcdServer struct {
	*Process // as it was last started
	node     *Node
	args     []string // but for its data directory
	flags    []string // of etcdctl
	dir      string
}

// aloneArgs make an etcd that is a cluster by itself; token is in the cluster's id.
func aloneArgs(token string) []string {
	return []string{"--listen-client-urls", "http://[::]:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "default=http://127.0.0.1:2380", "--initial-cluster-token", token}
}

// newEtcdServer starts Debian's etcd on the node with an empty store and waits until it serves.
func newEtcdServer(t testing.TB, node *Node, args ...string) *etcdServer {
	t.Helper()
	e := &etcdServer{node: node, args: args, dir: filepath.Join(t.TempDir(), "data")}
	e.start()
	e.wait()
	return e
}

func (e *etcdServer) start() {
	e.node.t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		e.node.t.Fatal("needs an etcd: apt-get install etcd-server")
	}
	e.Process = e.node.Spawn("etcd on "+e.node.Name, nil,
		append([]string{path, "--data-dir", e.dir, "--log-level", "error"}, e.args...)...)
}

// wait waits until the server serves, with a leader.
func (e *etcdServer) wait() {
	e.node.t.Helper()
	eventually(e.node.t, "etcd serves", func() error {
		out, err := e.tryCtl("get", "/", "--command-timeout=2s")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func (e *etcdServer) freeze() { e.Signal(syscall.SIGSTOP) }
func (e *etcdServer) thaw()   { e.Signal(syscall.SIGCONT) }

// kill ends the server as a power cut does; start brings it back with what is on its disk.
func (e *etcdServer) kill() {
	e.node.t.Helper()
	e.Stop(syscall.SIGKILL)
}

// backup copies the store as it is on the disk, and returns where to. The server is not there for a moment.
func (e *etcdServer) backup() (dir string) {
	t := e.node.t
	t.Helper()
	e.kill()
	dir = filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(dir, os.DirFS(e.dir)); err != nil {
		t.Fatal(err)
	}
	e.start()
	e.wait()
	return dir
}

// restore starts the server with another store, and other arguments if there are any. An empty dir has nothing in it.
func (e *etcdServer) restore(dir string, args ...string) {
	e.node.t.Helper()
	e.kill()
	e.dir = dir
	if len(args) > 0 {
		e.args = args
	}
	e.start()
	e.wait()
}

// ctl runs etcdctl on the server's node.
func (e *etcdServer) ctl(args ...string) string {
	e.node.t.Helper()
	out, err := e.tryCtl(args...)
	if err != nil {
		e.node.t.Fatalf("etcdctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (e *etcdServer) tryCtl(args ...string) (string, error) {
	cmd := e.node.Command(slices.Concat([]string{"etcdctl"}, e.flags, args)...)
	cmd.Env = append(cmd.Env, "ETCDCTL_API=3")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// newFaultWire is newWire with both families and an etcd that can be hurt.
func newFaultWire(t *testing.T, backend string, etcdArgs ...string) (*Lab, *Segment, *etcdServer) {
	t.Helper()
	l := newLab(t, both)
	s := l.NewSegment(1)
	l.NewEtcd(s)
	e := newEtcdServer(t, l.Etcd, append(aloneArgs("first"), etcdArgs...)...)
	l.Put(configKey, l.Config(backend))
	return l, s, e
}
