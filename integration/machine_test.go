package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

// own is a plugin that somebody has put where the reference plugins go.
const own = "/opt/cni/bin/ptp"

const conflist = "/etc/cni/net.d/10-overlay.conflist"

// TestMachine installs the package on a machine with systemd, and does with the service what operators do. The
// steps are the life of one machine; each begins where the one before has ended.
func TestMachine(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	media := t.TempDir()
	run(t, "install", "-t", media, bin("cnitool"))
	older, newer := "/media/"+makeDeb(t, media, "1.0.0~rc1"), "/media/"+makeDeb(t, media, "1.0.0")
	wire := lab.NewSegment(1)
	m, other := lab.NewMachine(wire, 11, media), lab.NewHost(wire, 12)
	etcd := netip.AddrPortFrom(m.Addrs[0], 2379).String()
	lab.etcdURL = "http://" + etcd

	m.install(older)
	m.configure(etcd)
	m.start()
	other.Start()
	other.WaitReady()
	m.attached(other)
	m.restartedWhenKilled()
	m.restartedWhenHung()
	m.reload()
	m.upgrade(newer, other)
	m.stop(other)
	m.reboot(media, other)
	m.remove()
	m.purge()
}

// install finds everything in place after the installation, and nothing started.
func (m *Machine) install(deb string) {
	m.t.Helper()
	m.WriteIn(own, "mine")
	m.In("dpkg", "--install", deb)
	for _, c := range []struct{ command, want string }{
		{"systemctl is-active overlayd || true", "inactive\n"},
		{"systemctl is-enabled overlayd || true", "disabled\n"},
		{"systemd-analyze verify overlayd.service 2>&1", ""},
		{"readlink /opt/cni/bin/bridge", "/usr/libexec/overlayd/cni/bridge\n"},
		{"cat " + own, "mine"},
		{"ip route add 192.0.2.1 dev lo proto overlay && ip route show proto overlay", "192.0.2.1 dev lo scope link \n"},
		{"ip route delete 192.0.2.1 dev lo", ""},
		{"man -w overlayd overlayctl", "/usr/share/man/man8/overlayd.8\n/usr/share/man/man8/overlayctl.8\n"},
		{"stat -c '%U %a' /run/overlayd /run/xtables.lock", "overlayd 755\nroot 640\n"},
	} {
		if got := m.In("sh", "-c", c.command); got != c.want {
			m.t.Errorf("%s: got %q, want %q", c.command, got, c.want)
		}
	}
}

// configure makes the machine the network's first host: its overlayd runs etcd for the others.
func (m *Machine) configure(etcd string) {
	m.t.Helper()
	m.WriteIn("/etc/overlayd/overlayd.yaml", fmt.Sprintf(
		"etcd-embedded: true\netcd-embedded-listen: %s\nnetwork: %s\nip-masq: true\n", etcd, overlayV4))
	m.WriteIn("/etc/systemd/system/overlayd.service.d/test.conf", "[Service]\nWatchdogSec=3\n")
	m.In("systemctl", "daemon-reload")
}

// start finds a service that says how it is, and that may do nothing but what concerns the network.
func (m *Machine) start() {
	m.t.Helper()
	m.In("systemctl", "start", "overlayd") // comes back when overlayd is ready
	status := m.In("systemctl", "status", "overlayd")
	for _, want := range []string{"Active: active (running)", `Status: "serving 10.5.`} {
		if !strings.Contains(status, want) {
			m.t.Errorf("the service's status does not say %q:\n%s", want, status)
		}
	}
	process := m.In("cat", "/proc/"+m.Show("MainPID")+"/status")
	const netAdminAndRaw = "0000000000003000"
	for _, want := range []string{"CapEff:\t" + netAdminAndRaw, "CapBnd:\t" + netAdminAndRaw, "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(process, want+"\n") {
			m.t.Errorf("the daemon's process has no line %q:\n%s", want, process)
		}
	}
	who := strings.TrimSpace(m.In("ps", "-o", "user=", "-p", m.Show("MainPID")))
	if who != "overlayd" {
		m.t.Errorf("the daemon runs as %s", who)
	}
	if out := m.In("stat", "-c", "%U %a", "/run/overlayd/subnet.env", "/var/lib/overlayd"); out != "overlayd 644\noverlayd 700\n" {
		m.t.Errorf("owners and modes of subnet.env and of the state: %s", out)
	}
	if out := m.In("overlayctl", "status"); !strings.Contains(out, "10.5.") {
		m.t.Errorf("overlayctl status: %s", out)
	}
	if rules := m.In("nft", "list", "table", "inet", "overlayd"); !strings.Contains(rules, "masquerade") {
		m.t.Errorf("the daemon has no rules:\n%s", rules)
	}
	if forward := m.In("iptables", "-S", "FORWARD"); !strings.Contains(forward, "OVERLAYD") {
		m.t.Errorf("the daemon does not let the overlay through iptables:\n%s", forward)
	}
}

// attached sends packets between a container of the machine and one of the other host.
func (m *Machine) attached(other *Host) {
	m.t.Helper()
	stream := m.stream(other)
	stream.Pass(20)
	stream.Stop()
}

func (m *Machine) stream(other *Host) *Stream {
	m.t.Helper()
	other.WaitPeers(1)
	m.WaitPeers(1)
	there := other.NewContainer()
	return NewStream(m.NewContainer(), there, there.Addrs[0])
}

// restartedWhenKilled kills the daemon.
func (m *Machine) restartedWhenKilled() {
	m.t.Helper()
	m.renewed(func() { m.In("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "overlayd") })
	if n := m.Show("NRestarts"); n != "1" {
		m.t.Errorf("the service was restarted %s times, not once", n)
	}
}

// restartedWhenHung stops the daemon from doing anything, which systemd finds out.
func (m *Machine) restartedWhenHung() {
	m.t.Helper()
	m.renewed(func() { m.In("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "overlayd") })
	if log := m.In("journalctl", "-u", "overlayd", "--no-pager"); !strings.Contains(log, "Watchdog timeout") {
		m.t.Errorf("the watchdog was not it:\n%s", tail(log, 20))
	}
}

// reload changes the configuration of the daemon that runs.
func (m *Machine) reload() {
	m.t.Helper()
	pid := m.Show("MainPID")
	m.In("sh", "-c", "echo log-level: debug >>/etc/overlayd/overlayd.yaml")
	m.In("systemctl", "reload", "overlayd")
	eventually(m.t, "the daemon has read its configuration again", func() error {
		if log := m.In("journalctl", "-u", "overlayd", "--no-pager"); !strings.Contains(log, "level=DEBUG") {
			return errors.New(tail(log, 10))
		}
		return nil
	})
	if now := m.Show("MainPID"); now != pid {
		m.t.Errorf("the daemon was process %s before the reload and is %s now", pid, now)
	}
}

// upgrade installs another version under running containers.
func (m *Machine) upgrade(deb string, other *Host) {
	m.t.Helper()
	stream := m.stream(other)
	m.renewed(func() { m.In("dpkg", "--install", deb) })
	stream.Pass(50)
	stream.Stop()
	if version := m.In("dpkg-query", "--show", "--showformat=${Version}", "overlayd"); version != "1.0.0" {
		m.t.Errorf("version %s is installed", version)
	}
	if conf := m.In("cat", "/etc/overlayd/overlayd.yaml"); !strings.Contains(conf, "log-level: debug") {
		m.t.Errorf("the configuration was replaced:\n%s", conf)
	}
}

// renewed does what ends the daemon and waits for the next one, which must have the same subnet.
func (m *Machine) renewed(end func()) {
	m.t.Helper()
	pid, env := m.Show("MainPID"), m.In("cat", "/run/overlayd/subnet.env")
	end()
	eventually(m.t, "another daemon is ready", func() error {
		now := m.In("systemctl", "show", "--property=ActiveState,MainPID", "overlayd")
		if !strings.Contains(now, "ActiveState=active\n") || strings.Contains(now, "MainPID="+pid+"\n") ||
			strings.Contains(now, "MainPID=0\n") {
			return fmt.Errorf("process %s then; now\n%s", pid, now)
		}
		return nil
	})
	if now := m.In("cat", "/run/overlayd/subnet.env"); now != env {
		m.t.Errorf("subnet.env was\n%snow\n%s", env, now)
	}
}

// stop ends the daemon. What it has made remains.
func (m *Machine) stop(other *Host) {
	m.t.Helper()
	stream := m.stream(other)
	m.In("systemctl", "stop", "overlayd")
	if result := m.Show("Result"); result != "success" {
		m.t.Errorf("the service ended with %s", result)
	}
	stream.Pass(50)
	stream.Stop()
	if !m.Exists("/run/overlayd/subnet.env") {
		m.t.Error("subnet.env went away with the daemon")
	}
}

// reboot finds the subnet again, and everything that containers need.
func (m *Machine) reboot(media string, other *Host) {
	m.t.Helper()
	env := m.In("cat", "/run/overlayd/subnet.env")
	m.In("systemctl", "enable", "overlayd")
	m.Reboot(media)
	eventually(m.t, "the daemon is started with the machine", func() error {
		if state := m.Show("ActiveState"); state != "active" {
			return errors.New(state)
		}
		return nil
	})
	if now := m.In("cat", "/run/overlayd/subnet.env"); now != env {
		m.t.Errorf("subnet.env before the reboot\n%safter it\n%s", env, now)
	}
	m.attached(other)
}

// remove leaves what an operator made, and what an installation after it needs.
func (m *Machine) remove() {
	m.t.Helper()
	m.In("dpkg", "--remove", "overlayd")
	m.remains(map[string]bool{
		"/usr/sbin/overlayd": false, "/opt/cni/bin/overlay": false, "/opt/cni/bin/bridge": false,
		"/etc/systemd/system/multi-user.target.wants/overlayd.service": false,
		own: true, "/etc/overlayd/overlayd.yaml": true, "/var/lib/overlayd/identity.json": true,
		conflist: false, conflist + ".removed": true,
	})
	if out, err := m.TryIn("pgrep", "-x", "overlayd"); err == nil {
		m.t.Errorf("overlayd runs as process %s", out)
	}
}

// purge leaves nothing of ours.
func (m *Machine) purge() {
	m.t.Helper()
	m.In("dpkg", "--purge", "overlayd")
	m.remains(map[string]bool{
		own: true, "/etc/overlayd": false, "/var/lib/overlayd": false, "/run/overlayd": false,
		"/var/lib/cni/overlay": false, conflist: false, conflist + ".removed": false,
	})
	left := m.In("find", "/etc", "/opt", "/usr", "/var/lib", "/run", "-xdev", "-path", "*overlayd*", "-not", "-path", "/usr/local/*")
	for path := range strings.Lines(left) {
		if !strings.HasPrefix(path, "/etc/systemd/system/overlayd.service.d") { // the test's own
			m.t.Errorf("left behind: %s", path)
		}
	}
}

func (m *Machine) remains(want map[string]bool) {
	m.t.Helper()
	for path, there := range want {
		if m.Exists(path) != there {
			m.t.Errorf("%s is there: %t, want %t", filepath.Clean(path), !there, there)
		}
	}
}
