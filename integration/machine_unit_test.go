package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// exposure is ten times the worst that "systemd-analyze security" may think of the unit, of 100. It does not know that
// adjtimex(2) only asks where there is no CAP_SYS_TIME.
const exposure = "22"

func TestUnitSecurity(t *testing.T) {
	t.Parallel()
	unit := readUnit(t, "overlayd")
	for _, c := range []struct {
		name, unit string
		exposure   string
		fine       bool
	}{
		{"a weaker one", regexp.MustCompile("(?m)^(SystemCall|Restrict).*\n").ReplaceAllString(unit, ""), exposure, false},
		{"ours", unit, exposure, true},
		{"Docker's driver, which is root as Docker and the CNI plugin are", readUnit(t, "overlayd-docker"), "38", true},
		{"user space", readUnit(t, "overlayd-tun"), exposure, true},
		{"the BGP speaker", readUnit(t, "overlayd-bgp"), exposure, true},
	} {
		path := filepath.Join(t.TempDir(), "overlayd.service")
		if err := os.WriteFile(path, []byte(c.unit), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+c.exposure, path).CombinedOutput()
		if (err == nil) != c.fine {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
	}
}

// TestUnitVerify has systemd read the unit. TestMachine does so with the binary and the manual page in place.
func TestUnitVerify(t *testing.T) {
	t.Parallel()
	for name, program := range map[string]string{
		"overlayd": "/usr/sbin/overlayd", "overlayd-docker": "/usr/sbin/overlayd-docker", "overlayd-tun": "/usr/sbin/overlayd-tun", "overlayd-bgp": "/usr/sbin/overlayd-bgp",
	} {
		path := filepath.Join(t.TempDir(), name+".service")
		unit := strings.ReplaceAll(readUnit(t, name), program, "/bin/true")
		if err := os.WriteFile(path, []byte(unit), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "verify", "--no-pager", "--man=no", "--recursive-errors=no", path).CombinedOutput()
		if err != nil || len(out) != 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestPackages compares what the packages hold with what "make install" installs. The binaries in them are none:
// only those that write the manual pages and completions are real.
func TestPackages(t *testing.T) {
	t.Parallel()
	if os.Getenv(binDirEnv) == "" {
		t.Skip("needs root, for which the binaries are built")
	}
	built, packages := t.TempDir(), t.TempDir()
	for _, name := range []string{"overlayd", "overlayctl", "overlayd-docker", "overlayd-tun", "overlayd-bgp", "cni/overlay", "cni/bridge", "cni/tuning"} {
		path := filepath.Join(built, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, arch := range []struct{ deb, rpm string }{{"amd64", "x86_64"}, {"arm64", "aarch64"}} {
		run(t, "make", "-s", "-C", "..", "pack", "BIN="+built, "HOSTBIN="+bin(""), "PACKAGES="+packages,
			"ARCH="+arch.deb, "PACKAGE_VERSION=1.2.3")
		want := lines(run(t, "find", built+"/stage", "-not", "-type", "d", "-printf", "/%P %M\n"))
		deb := filepath.Join(packages, "overlayd_1.2.3_"+arch.deb+".deb")
		rpm := filepath.Join(packages, "overlayd-1.2.3-1."+arch.rpm+".rpm")
		if got := strings.TrimSpace(run(t, "dpkg-deb", "--field", deb, "Architecture")); got != arch.deb {
			t.Errorf("%s is for %s", deb, got)
		}
		if got := run(t, "rpm", "-qp", "--queryformat", "%{ARCH}", rpm); got != arch.rpm {
			t.Errorf("%s is for %s", rpm, got)
		}
		inDeb := lines(run(t, "sh", "-c", `dpkg-deb --contents "$0" | awk '!/\/$/ {print substr($6, 2), $1}'`, deb))
		for i := range inDeb { // Debian's zsh looks elsewhere
			inDeb[i] = strings.Replace(inDeb[i], "zsh/vendor-completions", "zsh/site-functions", 1)
		}
		inRPM := lines(run(t, "rpm", "-qp", "--queryformat", `[%{FILENAMES} %{FILEMODES:perms}\n]`, rpm))
		inRPM = slices.DeleteFunc(inRPM, func(line string) bool { return strings.Contains(line, " d") })
		for i := range inRPM { // nfpm gives links no rights there, which mean nothing
			inRPM[i] = strings.Replace(inRPM[i], " l---------", " lrwxrwxrwx", 1)
		}
		if diff := cmp.Diff(want, inDeb); diff != "" {
			t.Errorf("%s (-installed +packed):\n%s", deb, diff)
		}
		if diff := cmp.Diff(want, inRPM); diff != "" {
			t.Errorf("%s (-installed +packed):\n%s", rpm, diff)
		}
		for _, conf := range []string{run(t, "dpkg-deb", "--info", deb, "conffiles"), run(t, "rpm", "-qpc", rpm)} {
			wantConf := []string{conflist, "/etc/iproute2/rt_protos.d/overlayd.conf", "/etc/overlayd/overlayd.yaml"}
			if diff := cmp.Diff(wantConf, lines(conf)); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		}
	}
}

// TestPackagesAreSigned signs the sums of packages with a key made for that, changes a package, and has no such key.
func TestPackagesAreSigned(t *testing.T) {
	t.Parallel()
	home, err := os.MkdirTemp("", "gnupg-") // the agent's socket has no room for a longer path
	if err != nil {
		t.Fatal(err)
	}
	packages := t.TempDir()
	env := "GNUPGHOME=" + home
	t.Cleanup(func() {
		_ = exec.Command("env", env, "gpgconf", "--kill", "all").Run()
		os.RemoveAll(home)
	})
	run(t, "env", env, "gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", "maintainer@example", "ed25519", "sign")
	deb := filepath.Join(packages, "a.deb")
	for _, file := range []string{deb, filepath.Join(packages, "a.rpm")} {
		if err := os.WriteFile(file, []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sign := func(key string) ([]byte, error) {
		return exec.Command("env", env, "make", "-s", "-C", "..", "sums", "PACKAGES="+packages, "SIGN_KEY="+key).CombinedOutput()
	}
	check := func() ([]byte, error) {
		cmd := exec.Command("sh", "-ec", "gpg --verify SHA256SUMS.asc SHA256SUMS && sha256sum --check SHA256SUMS")
		cmd.Env, cmd.Dir = append(os.Environ(), env, "LC_ALL=C"), packages
		return cmd.CombinedOutput()
	}
	if out, err := sign("maintainer@example"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := check(); err != nil || !strings.Contains(string(out), "a.deb: OK\na.rpm: OK\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := os.WriteFile(deb, []byte("another"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err == nil || !strings.Contains(string(out), "a.deb: FAILED") {
		t.Errorf("of a package that was changed: %v\n%s", err, out)
	}
	if out, err := sign("nobody@example"); err == nil || !strings.Contains(string(out), "nobody@example") {
		t.Errorf("with a key that is not there: %v\n%s", err, out)
	}
	if out, err := check(); err == nil {
		t.Errorf("a signature of before is left beside new sums:\n%s", out)
	}
}

// lines are the sorted lines of s.
func lines(s string) []string {
	return slices.Sorted(slices.Values(strings.Split(strings.TrimSpace(s), "\n")))
}

func readUnit(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../systemd/" + name + ".service")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
