package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestMachine installs the package on a machine with systemd, and does with the service what operators do. The
// steps are the life of one machine; each begins where the one before has ended.
func TestMachine(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	media := t.TempDir()
	run(t, "install", "-t", media, bin("cnitool"))
	older, newer := makePackages(t, media, "1.0.0~rc1"), makePackages(t, media, "1.0.0")
	wire := lab.NewSegment(1)
	m, other := lab.NewMachine(wire, 11, media), lab.NewHost(wire, 12)
	etcd := netip.AddrPortFrom(m.Addrs[0], 2379).String()
	lab.etcdURL = "http://" + etcd

	m.install(older.deb)
	m.unmanaged()
	m.configure(etcd)
	m.start()
	other.Start()
	other.WaitReady()
	m.attached(other)
	m.restartedWhenKilled()
	m.restartedWhenHung()
	m.reload()
	m.upgrade(newer.deb, other)
	m.stop(other)
	m.reboot(media, other)
	m.legacy()
	m.cleanUp()
	m.remove()
	m.purge()
	m.rpm(older.rpm, newer.rpm, etcd)
}

// configure makes the machine the network's first host: its overlayd runs etcd for the others.
func (m *Machine) configure(etcd string) {
	m.t.Helper()
	m.WriteIn("/etc/overlayd/overlayd.yaml", fmt.Sprintf(
		"etcd-embedded: true\netcd-embedded-insecure: true\netcd-embedded-listen: %s\nnetwork: %s\nip-masq: true\n", etcd, overlayV4))
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
	const netRights = "0000000000003400" // CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE
	for _, want := range []string{"CapEff:\t" + netRights, "CapBnd:\t" + netRights, "NoNewPrivs:\t1", "Seccomp:\t2"} {
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
	const asMember = "setpriv --reuid=nobody --regid=%s --clear-groups overlayctl status"
	if out, err := m.TryIn("sh", "-c", fmt.Sprintf(asMember, "overlayd")); err != nil {
		m.t.Errorf("a member of the group may not ask for the status: %s", out)
	}
	if out, err := m.TryIn("sh", "-c", fmt.Sprintf(asMember, "nogroup")); err == nil || !strings.Contains(out, "permission denied") {
		m.t.Errorf("a stranger asks for the status: %v, %s", err, out)
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
	stream.Pass(100)
	stream.Stop()
}

func (m *Machine) stream(other *Host) *Stream {
	m.t.Helper()
	other.WaitPeers(1)
	m.WaitPeers(1)
	there := other.NewContainer()
	return NewStream(m.NewContainer(), there)
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
	if log := m.log(); !strings.Contains(log, "Watchdog timeout") {
		m.t.Errorf("the watchdog was not it:\n%s", tail(log, 20))
	}
}

// reload changes the configuration of the daemon that runs.
func (m *Machine) reload() {
	m.t.Helper()
	pid := m.Show("MainPID")
	const path = "/etc/overlayd/overlayd.yaml"
	m.In("install", "-m", "0600", "/dev/null", "/etc/overlayd/host.key") // as it was copied here
	good := m.In("cat", path) + "log-level: debug\n"
	for _, c := range []struct{ config, want string }{{"log-levle: debug\n", "log-levle"}, {good, "level=DEBUG"}} {
		m.WriteIn(path, c.config)
		m.In("systemctl", "reload", "overlayd")
		eventually(m.t, "the daemon has read its configuration again", func() error {
			if log := m.log(); !strings.Contains(log, c.want) {
				return fmt.Errorf("no %s in\n%s", c.want, tail(log, 10))
			}
			return nil
		})
	}
	// Who may ask the daemon, its group, reads no key and locks no iptables.
	for _, file := range []string{"/etc/overlayd/host.key", "/run/xtables.lock"} {
		m.In("setpriv", "--reuid=overlayd", "--regid=nogroup", "--clear-groups", "cat", file)
		if out, err := m.TryIn("setpriv", "--reuid=nobody", "--regid=overlayd", "--clear-groups", "cat", file); err == nil {
			m.t.Errorf("a member of the daemon's group may read %s: %s", file, out)
		}
	}
	if now := m.Show("MainPID"); now != pid {
		m.t.Errorf("the daemon was process %s before the reload and is %s now", pid, now)
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
	stream.Pass(250)
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

// legacy runs the daemon where iptables is the old kind, which is another matter for a daemon that is not root.
func (m *Machine) legacy() {
	m.t.Helper()
	for _, command := range []string{"iptables", "ip6tables"} {
		m.In("update-alternatives", "--set", command, "/usr/sbin/"+command+"-legacy")
	}
	m.In("systemctl", "restart", "overlayd")
	if forward := m.In("iptables-legacy", "-S", "FORWARD"); !strings.Contains(forward, "OVERLAYD") {
		m.t.Errorf("the daemon does not let the overlay through iptables-legacy:\n%s", forward)
	}
}

// cleanUp makes the host leave, by the hand of root, and come back.
func (m *Machine) cleanUp() {
	m.t.Helper()
	m.In("systemctl", "stop", "overlayd")
	m.In("overlayd", "--cleanup")
	for _, left := range []string{
		m.In("ip", "route", "show", "proto", "overlay"), m.In("ip", "link", "show", "type", "vxlan"),
		m.In("sh", "-c", "nft list table inet overlayd 2>/dev/null || true"),
		m.In("sh", "-c", "iptables -S | grep -i overlayd || true"),
	} {
		if left != "" {
			m.t.Errorf("left behind:\n%s", left)
		}
	}
	m.In("chown", "root", "/var/lib/overlayd/leases.jsonl") // as a daemon does that root runs by hand
	m.In("systemctl", "start", "overlayd")
	if left := m.In("find", "/var/lib/overlayd", "/run/overlayd", "-not", "-user", "overlayd"); left != "" {
		m.t.Errorf("the daemon may not write what root has left:\n%s", left)
	}
}

// log is what the service has logged since the machine was booted.
func (m *Machine) log() string {
	m.t.Helper()
	return m.In("journalctl", "--boot", "--unit=overlayd", "--no-pager")
}
