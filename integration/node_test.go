package integration

import (
	"context"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/overlayd/overlayd/integration/internal/proc"
)

const (
	netnsDir   = proc.NetnsDir
	namePrefix = "ovlit" // of every namespace made here, followed by the pid
)

// Node is a network namespace: a host, a container, a router, a wire.
type Node struct {
	t    testing.TB
	Name string // of the namespace
}

// newNode makes a namespace with loopback up; it goes away with the test.
func newNode(t testing.TB, name string) *Node {
	t.Helper()
	n := &Node{t: t, Name: name}
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() {
		if t.Failed() { // where a packet was lost, perhaps
			out, _ := n.Command("sh", "-c", "nstat -as; ip -stats link; ip neighbour; ip -6 neighbour").CombinedOutput()
			t.Logf("--- %s has counted\n%s", name, out)
		}
		n.endLeft()
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			t.Errorf("delete namespace %s: %v: %s", name, err, out)
		}
	})
	n.Exec("ip", "link", "set", "lo", "up")
	return n
}

// endLeft ends what still runs in the node: what a daemon started to outlive it.
func (n *Node) endLeft() {
	out, _ := exec.Command("ip", "netns", "pids", n.Name).Output()
	for pid := range strings.FieldsSeq(string(out)) {
		if number, err := strconv.Atoi(pid); err == nil {
			_ = syscall.Kill(number, syscall.SIGKILL) // it may have ended
		}
	}
}

// Path is the file that stands for the namespace.
func (n *Node) Path() string { return netnsDir + "/" + n.Name }

// Command is a command to be run inside the node. It gets a process group of its own, and dies with the test.
func (n *Node) Command(args ...string) *exec.Cmd { return proc.Command(n.Name, args...) }

// Exec runs a command inside the node and returns its output; a failure ends the test.
func (n *Node) Exec(args ...string) string {
	n.t.Helper()
	out, err := n.Try(args...)
	if err != nil {
		n.t.Fatalf("%s: %s: %v\n%s", n.Name, strings.Join(args, " "), err, out)
	}
	return out
}

// Try is Exec for commands that may fail. It returns standard output and error as one.
func (n *Node) Try(args ...string) (string, error) {
	out, err := n.Command(args...).CombinedOutput()
	return string(out), err
}

// Sysctl sets kernel parameters of the node, given as name=value.
func (n *Node) Sysctl(settings ...string) {
	n.t.Helper()
	n.Exec(append([]string{"sysctl", "-q", "-w"}, settings...)...)
}

// Do calls f on a thread that is inside the node. Sockets made by f stay in the node.
func (n *Node) Do(f func() error) error { return proc.Do(n.Name, f) }

// Dial connects from inside the node; addr holds an IP address, not a name.
func (n *Node) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// HTTP is a client that connects from inside the node.
func (n *Node) HTTP() *http.Client {
	return &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{DialContext: n.Dial, DisableKeepAlives: true},
	}
}

// Get fetches a URL from inside the node.
func (n *Node) Get(url string) (status int, body string, err error) {
	return answer(n.HTTP().Get(url))
}

// Post sends a JSON document from inside the node.
func (n *Node) Post(url, document string) (status int, body string, err error) {
	return answer(n.HTTP().Post(url, "application/json", strings.NewReader(document)))
}

func answer(resp *http.Response, err error) (status int, body string, _ error) {
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}
