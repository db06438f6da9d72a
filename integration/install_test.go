package integration

import (
	"debug/elf"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestInstall builds and installs as the README says: what is installed is static and knows its version, and uninstall
// leaves what it says it leaves.
func TestInstall(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	makeTarget := func(target string) {
		t.Helper()
		run(t, "make", "-s", "-C", "..", target, "VERSION=v9.8.7", "BIN="+filepath.Join(root, "built"), "DESTDIR="+filepath.Join(root, "host"))
	}
	makeTarget("install")
	host := filepath.Join(root, "host")
	for program, want := range map[string]string{
		"usr/sbin/overlayd": "overlayd v9.8.7\n", "usr/bin/overlayctl": "overlayctl v9.8.7\n",
		"opt/cni/bin/overlay": "CNI overlay plugin v9.8.7\n", "opt/cni/bin/portmap": "CNI portmap plugin ",
	} {
		path := filepath.Join(host, program)
		if out := run(t, path, "--version"); !strings.HasPrefix(out, want) {
			t.Errorf("%s --version: %q", program, out)
		}
		if interpreter(t, path) {
			t.Errorf("%s is not static", program)
		}
	}
	makeTarget("uninstall")
	left := slices.DeleteFunc(filesUnder(t, host), func(f string) bool {
		return strings.HasPrefix(f, "opt/cni/bin/") && filepath.Base(f) != "overlay" // the reference plugins
	})
	want := []string{"etc/cni/net.d/10-overlay.conflist", "etc/overlayd/overlayd.yaml"}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("left by uninstall (-want +got):\n%s", diff)
	}
}

// interpreter says whether a program is loaded by another, as one that is linked with libraries is.
func interpreter(t *testing.T, path string) bool {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}
