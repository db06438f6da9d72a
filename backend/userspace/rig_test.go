package userspace

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// build builds the program once for all tests, and says where it is.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "overlayd-tun-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, Program)
	race := "-race=" + strconv.FormatBool(flag.Lookup("test.bench").Value.String() == "") // not to be measured
	out, err := exec.Command("go", "build", race, "-o", path, "../../cmd/overlayd-tun").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := build(); err == nil && path != "" {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// host is a network namespace whose process is started as a daemon's would be, with a /run/wireguard of its own.
type host struct {
	*Client
	t         testing.TB
	ns        netns.NsHandle
	wireguard string
	wrap      string // more that the shell does before it starts the process
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{t: t, ns: nstest.New(t), wireguard: t.TempDir()}
	h.Client = h.daemon(t.TempDir())
	t.Cleanup(func() {
		h.end()
		if log, _ := os.ReadFile(filepath.Join(h.runDir, logName)); t.Failed() || strings.Contains(string(log), "DATA RACE") {
			t.Errorf("--- its log\n%s", log)
		}
	})
	nstest.Sh(t, h.ns, "ip link set lo up")
	return h
}

// daemon is what a daemon of the host with that run directory has.
func (h *host) daemon(runDir string) *Client {
	c := New(runDir, slog.New(slog.DiscardHandler))
	c.command = func() (*exec.Cmd, error) {
		program, err := build()
		script := `mkdir -p /run/wireguard; mount --bind "$0" /run/wireguard; ` + h.wrap + ` exec "$@"`
		return exec.Command("nsenter", "--net="+nstest.Path(h.ns), "unshare", "--mount", "sh", "-ec", script, h.wireguard, program), err
	}
	return c
}

// pids are the processes that run in the host.
func (h *host) pids() (pids []int) {
	h.t.Helper()
	var mine unix.Stat_t
	if err := unix.Fstat(int(h.ns), &mine); err != nil {
		h.t.Fatal(err)
	}
	all, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range all {
		var is unix.Stat_t
		if err := unix.Stat(path, &is); err == nil && is.Ino == mine.Ino {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// end kills the process.
func (h *host) end() {
	for _, pid := range h.pids() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	h.eventually("nothing runs", func() bool { return len(h.pids()) == 0 })
}

func (h *host) eventually(what string, is func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("never: %s", what)
		}
	}
}

// must stops the test on an error.
func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// refuses expects an error that says something.
func refuses(t *testing.T, err error, says string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("the error is %v, which does not say %q", err, says)
	}
}

// there is what ip says of a link; "" if there is none.
func (h *host) there(name string) string {
	return nstest.Sh(h.t, h.ns, "ip -details link show "+name+" 2>/dev/null || true")
}

// raw sends a line as it is.
func (h *host) raw(line string) (a Answer, err error) {
	c, err := net.Dial("unix", h.socket())
	if err != nil {
		return a, err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, line); err != nil {
		return a, err
	}
	s := bufio.NewScanner(c)
	if !s.Scan() {
		return a, errors.Join(s.Err(), errors.New("no answer"))
	}
	return a, json.Unmarshal(s.Bytes(), &a)
}
