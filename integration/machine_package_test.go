package integration

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// own is a plugin that somebody has put where the reference plugins go.
const own = "/opt/cni/bin/ptp"

const conflist = "/etc/cni/net.d/10-overlay.conflist"

// packages are the files of one version, as the machine sees them.
type packages struct{ deb, rpm string }

// makePackages packs the binaries under test into packages of the given version, in the directory that the machine
// sees as /media.
func makePackages(t *testing.T, dir, version string) packages {
	t.Helper()
	built := filepath.Join(t.TempDir(), "bin")
	if err := os.MkdirAll(filepath.Join(built, "cni"), 0o755); err != nil {
		t.Fatal(err)
	}
	for to, from := range map[string]string{
		"overlayd": "overlayd", "overlayd-docker": "overlayd-docker", "overlayd-tun": "overlayd-tun", "overlayd-bgp": "overlayd-bgp", "overlayctl": "overlayctl", "cni/overlay": "overlay",
		"cni/bridge": "bridge", "cni/ptp": "ptp", "cni/host-local": "host-local", "cni/portmap": "portmap",
	} {
		if err := os.Link(bin(from), filepath.Join(built, to)); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "make", "-s", "-C", "..", "pack", "BIN="+built, "PACKAGES="+dir, "ARCH="+runtime.GOARCH, "PACKAGE_VERSION="+version)
	seen := func(pattern string) string {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) != 1 {
			t.Fatalf("packages %s: %v, %v", pattern, files, err)
		}
		return "/media/" + filepath.Base(files[0])
	}
	return packages{deb: seen("overlayd_" + version + "_*.deb"), rpm: seen("overlayd-" + version + "-*.rpm")}
}

// install finds everything in place after the installation, and nothing started.
func (m *Machine) install(deb string) {
	m.t.Helper()
	m.WriteIn(own, "mine")
	m.In("dpkg", "--install", deb)
	for _, c := range []struct{ command, want string }{
		{"systemctl is-active overlayd || true", "inactive\n"},
		{"systemctl is-enabled overlayd || true", "disabled\n"},
		{"systemd-analyze verify overlayd.service overlayd-bgp.service 2>&1", ""},
		{"readlink /opt/cni/bin/bridge", "/usr/libexec/overlayd/cni/bridge\n"},
		{"readlink -e /usr/libexec/netavark/overlay", "/opt/cni/bin/overlay\n"},
		{"cat " + own, "mine"},
		{"ip route add 192.0.2.1 dev lo proto overlay && ip route show proto overlay", "192.0.2.1 dev lo scope link \n"},
		{"ip route delete 192.0.2.1 dev lo", ""},
		{"man -w overlayd overlayctl overlayd-docker overlayd-bgp", "/usr/share/man/man8/overlayd.8\n/usr/share/man/man8/overlayctl.8\n/usr/share/man/man8/overlayd-docker.8\n/usr/share/man/man8/overlayd-bgp.8\n"},
		{"stat -c '%U %a' /run/overlayd /run/xtables.lock", "overlayd 755\noverlayd 640\n"},
	} {
		if got := m.In("sh", "-c", c.command); got != c.want {
			m.t.Errorf("%s: got %q, want %q", c.command, got, c.want)
		}
	}
}

// unmanaged has systemd-networkd leave the overlay's links alone, whatever it is told of all links.
func (m *Machine) unmanaged() {
	m.t.Helper()
	m.WriteIn("/run/systemd/network/50-test.network", "[Match]\nName=overlay* strange*\n[Network]\nDHCP=yes\n")
	m.In("sh", "-ec", "for l in overlay.9 strange9; do ip link add $l type bridge; ip link set $l up; done; systemctl start systemd-networkd")
	defer m.In("sh", "-ec", "systemctl stop systemd-networkd.socket systemd-networkd; rm -r /run/systemd/network; ip link delete overlay.9; ip link delete strange9")
	eventually(m.t, "systemd-networkd manages others' links and not ours", func() error {
		out := strings.Join(strings.Fields(m.In("networkctl", "--no-legend", "list", "overlay.9", "strange9")), " ")
		if !regexp.MustCompile(`overlay\.9 \S+ \S+ unmanaged .*strange9 \S+ \S+ configuring`).MatchString(out) {
			return errors.New(out)
		}
		return nil
	})
}

// upgrade installs another version under running containers.
func (m *Machine) upgrade(deb string, other *Host) {
	m.t.Helper()
	stream := m.stream(other)
	m.renewed(func() { m.In("dpkg", "--install", deb) })
	stream.Pass(250)
	stream.Stop()
	if version := m.In("dpkg-query", "--show", "--showformat=${Version}", "overlayd"); version != "1.0.0" {
		m.t.Errorf("version %s is installed", version)
	}
	if conf := m.In("cat", "/etc/overlayd/overlayd.yaml"); !strings.Contains(conf, "log-level: debug") {
		m.t.Errorf("the configuration was replaced:\n%s", conf)
	}
}

// remove leaves what an operator made, and what an installation after it needs.
func (m *Machine) remove() {
	m.t.Helper()
	m.In("dpkg", "--remove", "overlayd")
	m.remains(map[string]bool{
		"/usr/sbin/overlayd": false, "/opt/cni/bin/overlay": false, "/usr/libexec/netavark/overlay": false, "/opt/cni/bin/bridge": false,
		"/etc/systemd/system/multi-user.target.wants/overlayd.service": false,
		own: true, "/etc/overlayd/overlayd.yaml": true, "/var/lib/overlayd/identity.json": true,
		conflist: false, conflist + ".removed": true,
	})
	m.stopped()
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
			m.t.Errorf("%s is there: %t, want %t", path, !there, there)
		}
	}
}

// rpm does the same with the other kind of package, on a machine whose own kind it is not.
func (m *Machine) rpm(older, newer, etcd string) {
	m.t.Helper()
	rpm := func(args ...string) { m.In(append([]string{"rpm", "--force-debian", "--nodeps"}, args...)...) }
	rpm("--install", older)
	if state, _ := m.TryIn("systemctl", "is-active", "overlayd"); state != "inactive\n" {
		m.t.Errorf("after the installation the service is %s", state)
	}
	m.configure(etcd)
	m.In("systemctl", "start", "overlayd")
	m.renewed(func() { rpm("--upgrade", newer) })
	rpm("--erase", "overlayd")
	m.remains(map[string]bool{
		"/usr/sbin/overlayd": false, "/usr/libexec/overlayd": false, "/opt/cni/bin/overlay": false, "/usr/libexec/netavark/overlay": false,
		"/opt/cni/bin/bridge": false, own: true, conflist: false,
		"/etc/overlayd/overlayd.yaml.rpmsave": true, "/var/lib/overlayd/identity.json": true,
	})
	m.stopped()
}

// stopped finds no daemon.
func (m *Machine) stopped() {
	m.t.Helper()
	if out, err := m.TryIn("pgrep", "-x", "overlayd"); err == nil {
		m.t.Errorf("overlayd runs as process %s", out)
	}
}
