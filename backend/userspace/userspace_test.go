package userspace

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/kernel"
)

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
		if out, err := cmd.CombinedOutput(); strings.TrimSpace(string(out)) != "0" && !strings.Contains(string(out), "reset by peer") && !strings.Contains(string(out), "Broken pipe") {
			t.Errorf("%s answers nobody: %s, %v", path, out, err)
		}
	}
}

var loopback = netip.MustParseAddr("127.0.0.1")

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
