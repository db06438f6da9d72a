package integration

import (
	"debug/elf"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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
	host := filepath.Join(root, "host")
	plugins := filepath.Join(host, "opt", "cni", "bin")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	const theirs = "CNI ptp plugin v1.2.0"
	for plugin, about := range map[string]string{"ptp": theirs, "tuning": "CNI tuning plugin version unknown"} {
		script := fmt.Sprintf("#!/bin/sh\necho '%s' >&2\n", about)
		if err := os.WriteFile(filepath.Join(plugins, plugin), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	makeTarget("install")
	for program, want := range map[string]string{
		"usr/sbin/overlayd": "overlayd v9.8.7\n", "usr/bin/overlayctl": "overlayctl v9.8.7\n", "usr/sbin/overlayd-bgp": "overlayd-bgp v9.8.7\n",
		"usr/sbin/overlayd-docker": "overlayd-docker v9.8.7\n",
		"opt/cni/bin/overlay":      "CNI overlay plugin v9.8.7\n", "opt/cni/bin/portmap": "CNI portmap plugin v1.",
		"opt/cni/bin/bridge": "CNI bridge plugin v1.", "opt/cni/bin/tuning": "CNI tuning plugin v1.", // ours of old
	} {
		file := filepath.Join(host, program)
		if out := run(t, file, "--version"); !strings.HasPrefix(out, want) {
			t.Errorf("%s --version: %q", program, out)
		}
		if interpreter(t, file) {
			t.Errorf("%s is not static", program)
		}
	}
	if out := run(t, filepath.Join(plugins, "ptp")); out != theirs+"\n" {
		t.Errorf("a plugin that was there is %q now", out)
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

// TestDropIns reads what tells others of the overlay, as they would: which links are not theirs, and which port is open.
func TestDropIns(t *testing.T) {
	t.Parallel()
	for file, list := range map[string]*regexp.Regexp{
		"NetworkManager/conf.d/50-overlayd.conf": regexp.MustCompile(`(?m)^\[keyfile\]\nunmanaged-devices\+=(\S+)$`),
		"systemd/network/10-overlayd.network":    regexp.MustCompile(`(?m)^\[Match\]\nName=(.+)\n\n\[Link\]\nUnmanaged=yes$`),
	} {
		text, err := os.ReadFile("../etc/" + file)
		if err != nil {
			t.Fatal(err)
		}
		m := list.FindSubmatch(text)
		if m == nil {
			t.Fatalf("%s is not understood:\n%s", file, text)
		}
		patterns := strings.FieldsFunc(strings.ReplaceAll(string(m[1]), "interface-name:", ""), func(r rune) bool { return r == ';' || r == ' ' })
		for link, ours := range map[string]bool{
			"overlay.1": true, "overlay6.1": true, "overlay.p8472": true, "overlayp0a1b2c": true, "flannel.1": true, "flannel-v6.1": true, "cni0": true, "ov-red": true, "ovw-red": true,
			"eth0": false, "docker0": false, "br0": false,
		} {
			if got := slices.ContainsFunc(patterns, func(p string) bool { ok, _ := filepath.Match(p, link); return ok }); got != ours {
				t.Errorf("%s: %s is ours: %t, want %t", file, link, got, ours)
			}
		}
	}
	text, err := os.ReadFile("../etc/firewalld/services/overlayd.xml")
	if err != nil {
		t.Fatal(err)
	}
	var service struct {
		Port struct {
			Protocol string `xml:"protocol,attr"`
			Port     int    `xml:"port,attr"`
		} `xml:"port"`
	}
	if err := xml.Unmarshal(text, &service); err != nil || service.Port.Protocol != "udp" || service.Port.Port != 8472 {
		t.Errorf("firewalld's service: %v, %+v", err, service)
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
