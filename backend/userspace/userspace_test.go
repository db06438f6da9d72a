package userspace

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
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
	"github.com/overlayd/overlayd/backend/kernel"
)

// build builds the program once for all tests, and says where it is.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "overlayd-tun-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, Program)
	out, err := exec.Command("go", "build", "-race", "-o", path, "../../cmd/overlayd-tun").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := build(); err == nil {
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

func TestWireGuardLink(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if there, err := h.There(); err != nil || len(h.pids()) > 0 {
		t.Fatalf("asking what is there gave %v, %v and started %v", there, err, h.pids())
	}
	h.must(h.WireGuard("overlay-wg", 1420))
	is := h.there("overlay-wg")
	for _, want := range []string{"mtu 1420", ",UP", "tun type tun", "alias " + kernel.AliasWireGuard, "addrgenmode none"} {
		if !strings.Contains(is, want) {
			t.Errorf("the link is not %q:\n%s", want, is)
		}
	}
	h.must(h.WireGuard("overlay-wg", 1420))
	if now := h.there("overlay-wg"); now != is {
		t.Errorf("asking again made of\n%s\n%s", is, now)
	}
	if got := h.wg("overlay-wg", "get=1"); !strings.Contains(got, "errno=0") {
		t.Errorf("wg(8) would hear %q", got)
	}
	there, err := h.There()
	h.must(err)
	if len(there.WireGuard) != 1 || there.WireGuard[0] != (WireGuard{"overlay-wg", 1420}) || there.Resident == 0 || there.Version == "" {
		t.Errorf("there is %+v", there)
	}
}

// wg speaks as wg(8) does.
func (h *host) wg(link string, lines ...string) string {
	h.t.Helper()
	c, err := net.Dial("unix", filepath.Join(h.wireguard, link+".sock"))
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_, err = fmt.Fprintf(c, "%s\n\n", strings.Join(lines, "\n"))
	h.must(err)
	var answer strings.Builder
	for s := bufio.NewScanner(c); s.Scan() && s.Text() != ""; {
		answer.WriteString(s.Text() + "\n")
	}
	return answer.String()
}

// What happens to the process and its links, each of which the next request mends.
func TestWireGuardLinkIsMadeAnew(t *testing.T) {
	t.Parallel()
	for what, happens := range map[string]func(h *host){
		"link deleted":   func(h *host) { nstest.Sh(h.t, h.ns, "ip link delete overlay-wg") },
		"link renamed":   func(h *host) { nstest.Sh(h.t, h.ns, "ip link set overlay-wg down; ip link set overlay-wg name gone") },
		"process killed": func(h *host) { h.end() },
		"a file in the place of its socket": func(h *host) {
			path := filepath.Join(h.wireguard, "overlay-wg.sock")
			h.end()
			h.must(os.Remove(path))
			h.must(os.WriteFile(path, nil, 0o600))
		},
		"killed, socket gone": func(h *host) {
			h.end()
			h.must(os.Remove(h.socket()))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.must(h.WireGuard("overlay-wg", 1420))
			happens(h)
			h.eventually("the link can be made", func() bool { return h.WireGuard("overlay-wg", 1420) == nil })
			if is := h.there("overlay-wg"); !strings.Contains(is, ",UP") {
				t.Errorf("the link is %q", is)
			}
			if got := h.wg("overlay-wg", "get=1"); !strings.Contains(got, "errno=0") {
				t.Errorf("wg(8) would hear %q", got)
			}
		})
	}
}

// Somebody tidies up /run/wireguard.
func TestWireGuardControlSocketComesBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must(h.WireGuard("overlay-wg", 1420))
	h.must(os.Remove(filepath.Join(h.wireguard, "overlay-wg.sock")))
	h.eventually("wg(8) is answered", func() bool { return strings.Contains(h.wg("overlay-wg", "get=1"), "errno=0") })
}

// Who sets a port that is taken hears it, and can set it later.
func TestWireGuardPortTaken(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must(h.WireGuard("overlay-wg", 1420))
	h.must(h.WireGuard("overlay6-wg", 1420))
	if got := h.wg("overlay-wg", "set=1", "listen_port=51820"); got != "errno=0\n" {
		t.Fatalf("the first hears %q", got)
	}
	if got, want := h.wg("overlay6-wg", "set=1", "listen_port=51820"), fmt.Sprintf("errno=-%d\n", unix.EADDRINUSE); got != want {
		t.Errorf("the second hears %q, not %q", got, want)
	}
	nstest.Sh(t, h.ns, "ip link delete overlay-wg")
	h.eventually("the port is free", func() bool { return h.wg("overlay6-wg", "set=1", "listen_port=51820") == "errno=0\n" })
}

// Where the port of flannel's udp is taken no link comes and goes: each time one does, the daemon tries again at once.
func TestUDPPortTaken(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must(h.UDP(kernel.UDPTun{Name: "overlay.udp", MTU: 1400, Local: loopback, Port: 8285}))
	before := nstest.Sh(t, h.ns, "ip link add x0 type bridge; ip -o link show x0 | cut -d: -f1")
	for range 3 {
		refuses(t, h.UDP(kernel.UDPTun{Name: "overlay.udp2", MTU: 1400, Local: loopback, Port: 8285}), "is taken")
	}
	after := nstest.Sh(t, h.ns, "ip link add x1 type bridge; ip -o link show x1 | cut -d: -f1")
	if a, b := strings.TrimSpace(before), strings.TrimSpace(after); len(a) == len(b) && a[len(a)-1]+1 != b[len(b)-1] {
		t.Errorf("links were made between %s and %s", a, b)
	}
}

// The process serves two daemons of a host, and two that start it at once start one.
func TestTwoDaemons(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := h.daemon(h.runDir).WireGuard("overlay-wg", 1420); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	h.eventually("one process runs", func() bool { return len(h.pids()) == 1 })
	// One with another run directory has a process of its own, which takes no link of the first.
	other := h.daemon(t.TempDir())
	refuses(t, other.WireGuard("overlay-wg", 1420), "another process serves a wireguard link overlay-wg")
	refuses(t, other.UDP(kernel.UDPTun{Name: "overlay-wg", MTU: 1400, Local: loopback, Port: 8285}), "a link of that name exists")
}

// It ends when nobody can reach it, and lets its links go: else the next could not make them.
func TestProcessEndsWithItsSocket(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must(h.WireGuard("overlay-wg", 1420))
	h.must(os.Remove(h.socket()))
	h.eventually("nothing runs", func() bool { return len(h.pids()) == 0 })
	if is := h.there("overlay-wg"); is != "" {
		t.Errorf("the link is still there: %s", is)
	}
}

// What it has in the run directory can be found when the host leaves, and is not looked for where systemd has the socket.
func TestFiles(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if got := Files(h.runDir); got != nil {
		t.Errorf("before it is started there is %q", got)
	}
	h.must(h.WireGuard("overlay-wg", 1420))
	for _, path := range Files(h.runDir) {
		h.must(os.Remove(path))
	}
	h.eventually("nothing runs", func() bool { return len(h.pids()) == 0 })
	if left, _ := os.ReadDir(h.runDir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestWhatCannotBeMade(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct{ before, wrap, says string }{
		"a bridge's name":       {before: "ip link add overlay-wg type bridge", says: "a link of that name exists"},
		"another's TUN link":    {before: "ip tuntap add overlay-wg mode tun", says: "a link of that name exists"},
		"no device":             {wrap: "mount -t tmpfs none /dev;", says: "no /dev/net/tun"},
		"no rights":             {wrap: `set -- setpriv --bounding-set=-net_admin --inh-caps=-net_admin "$@";`, says: "needs CAP_NET_ADMIN"},
		"full disk":             {wrap: `mount -t tmpfs -o nr_inodes=1 none /run/wireguard;`, says: "no space left on device"},
		"a read-only directory": {wrap: `mount -t tmpfs -o ro none /run/wireguard;`, says: "read-only file system"},
		"it ends at once":       {wrap: `set -- false;`, says: "it ended before it answered"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			nstest.Sh(t, h.ns, test.before)
			h.wrap = test.wrap
			refuses(t, h.WireGuard("overlay-wg", 1420), test.says)
		})
	}
}

// What comes by the socket is not trusted to make sense.
func TestRequestsAreValidated(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must(h.WireGuard("overlay-wg", 1420))
	long := `{"wireguard":{"name":"` + strings.Repeat("x", 1<<20) + `","mtu":1400}}`
	for _, line := range []string{
		``, `x`, `[]`, `{"wireguard":{"name":"eth0","mtu":1400}}`, `{"wireguard":{"name":"overlay/../x","mtu":1400}}`, `{"wireguard":{"name":"","mtu":1400}}`,
		`{"wireguard":{"name":"overlay%d","mtu":1400}}`, `{"wireguard":{"name":"overlay-wg-12345","mtu":1400}}`, `{"wireguard":{"name":"overlay-wg","mtu":0}}`,
		`{"wireguard":{"name":"overlay-wg","mtu":-1}}`, `{"wireguard":{"name":"overlay-wg","mtu":1e9}}`, `{"wireguard":{"name":"overlay-wg","mtu":1400,"x":1}}`,
		`{"further":{}}`, `{"udp":{"name":"overlay.udp","mtu":1400,"port":8285}}`, `{"udp":{"name":"overlay.udp","mtu":1400,"local":"192.0.2.1"}}`,
		`{"udp":{"name":"overlay.udp","mtu":1400,"local":"::1","port":8285}}`, `{"udp":{"name":"overlay.udp","mtu":1400,"local":"192.0.2.1","port":99999}}`,
		`{"peers":{"link":"overlay.udp"}}`, `{"peers":{"link":"overlay-wg","put":[{"subnet":"10.5.1.0/24","host":"192.0.2.2"}]}}`, `{} {}`, long,
	} {
		if a, err := h.raw(line); err != nil || a.Error == "" {
			t.Errorf("%.80q is answered %+v, %v", line, a, err)
		}
	}
	if is := nstest.Sh(t, h.ns, "ip -brief link | cut -d' ' -f1 | paste -sd' '"); strings.TrimSpace(is) != "lo overlay-wg" {
		t.Errorf("there are %s", is)
	}
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

// Nobody but root and the process's own user is answered, also where the socket lets others in.
func TestSocketIsForRootAndItsUser(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must(h.WireGuard("overlay-wg", 1420))
	for _, path := range []string{h.socket(), filepath.Join(h.wireguard, "overlay-wg.sock")} {
		info, err := os.Stat(path)
		h.must(err)
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %v", path, info.Mode())
		}
		h.must(os.Chmod(path, 0o777))
		for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
			if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
				h.must(os.Chmod(dir, 0o755))
			}
		}
		const ask = `import socket,sys
s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b"{}\n"); print(len(s.recv(100)))`
		cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", ask, path)
		if out, err := cmd.CombinedOutput(); strings.TrimSpace(string(out)) != "0" && !strings.Contains(string(out), "reset by peer") {
			t.Errorf("%s answers nobody: %s, %v", path, out, err)
		}
	}
}

var loopback = netip.MustParseAddr("127.0.0.1")
