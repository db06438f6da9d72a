package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// loadingMachine lets root load programs into the kernel in a machine.
var loadingMachine = []string{"--capability=all", "--system-call-filter=bpf"}

// TestMachineFastPath has the unit load the programs of the fast path for a daemon that may not, and looks what becomes of it
// through what operators do.
func TestMachineFastPath(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	media := t.TempDir()
	run(t, "install", "-t", media, bin("cnitool"))
	deb := makePackages(t, media, "1.0.0").deb
	wire := lab.NewSegment(1)
	m, other := lab.NewMachine(wire, 11, media, loadingMachine...), lab.NewHost(wire, 12)
	etcd := netip.AddrPortFrom(m.Addrs[0], 2379).String()
	lab.etcdURL = "http://" + etcd
	m.In("dpkg", "--install", deb)
	m.configure(etcd)
	// By it the daemon, which has a /proc of its own, knows the containers of before the start from those of now.
	m.In("sh", "-c", "while umount /proc/sys/kernel/random/boot_id; do :; done")
	m.start()
	other.Start()
	other.WaitReady()
	m.waitFastPath("off", "is it on a bpf file system")

	m.In("mount", "-t", "bpf", "-o", "mode=700", "bpf", "/sys/fs/bpf") // as systemd does where it is no container's
	m.In("systemctl", "restart", "overlayd")
	other.WaitPeers(1)
	here, there := m.NewContainer(), other.NewContainer()
	m.waitFastPath("on", "1 subnet of peers, 1 container")
	if _, err := here.Transfer(there.Node, there.Addrs[0], 4<<20); err != nil {
		t.Error(err)
	}
	if out := m.In("overlayctl", "fast-path"); !strings.Contains(out, " sent") || strings.Contains(out, " 0 sent") {
		t.Errorf("nothing was fast:\n%s", out)
	}
	if out := m.In("find", "/sys/fs/bpf/overlayd", "!", "-user", "overlayd"); out != "" {
		t.Errorf("not the daemon's user's:\n%s", out)
	}
	stream := m.stream(other)
	m.In("systemctl", "restart", "overlayd")
	m.waitFastPath("on", "1 subnet of peers, 2 containers")
	m.In("systemctl", "kill", "--signal=KILL", "overlayd")
	m.waitFastPath("on", "1 subnet of peers, 2 containers")
	stream.Pass(100)
	stream.Stop()

	m.In("sh", "-ec", "echo 'fast-path: off' >>/etc/overlayd/overlayd.yaml; systemctl reload overlayd")
	m.waitFastPath("off", "switched off")
	m.In("systemctl", "restart", "overlayd")
	m.waitFastPath("off", "switched off")
	if m.Exists("/sys/fs/bpf/overlayd") {
		t.Error("programs are loaded that may not be used")
	}
	m.In("overlayctl", "fast-path", "on")
	m.waitFastPath("off", "the setting fast-path was off when the daemon was started")
	m.In("sh", "-ec", "sed -i /fast-path/d /etc/overlayd/overlayd.yaml; systemctl restart overlayd")
	m.waitFastPath("on", "1 subnet")
	m.In("systemctl", "stop", "overlayd")
	m.In("overlayd", "--cleanup")
	for _, left := range []string{"/sys/fs/bpf/overlayd", "/run/overlayd/fast-path.unloaded"} {
		if m.Exists(left) {
			t.Errorf("%s is left behind", left)
		}
	}
}

// waitFastPath waits until overlayctl says in one line that it is on or off, and what to that.
func (m *Machine) waitFastPath(is, what string) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("the fast path is %s: %s", is, what), func() error {
		out, _ := m.TryIn("overlayctl", "status")
		for line := range strings.Lines(out) {
			if rest, ok := strings.CutPrefix(line, "FAST PATH "); ok && strings.HasPrefix(strings.TrimSpace(rest), is) && strings.Contains(rest, what) {
				return nil
			}
		}
		return errors.New(out + m.log())
	})
}
