package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// buildDir is where TestMain lets the binaries be built.
var buildDir string

// binaries returns the directory of overlay, the reference plugins and cnitool, built once. OVERLAYD_CNI_BIN names
// one that has the latter already.
var binaries = sync.OnceValues(func() (string, error) {
	ready := os.Getenv("OVERLAYD_CNI_BIN")
	if ready != "" {
		if err := os.CopyFS(buildDir, os.DirFS(ready)); err != nil {
			return "", err
		}
		os.Remove(filepath.Join(buildDir, "overlay"))
	}
	const cni = "github.com/containernetworking/"
	var errs []error
	for _, pkg := range []string{
		"cni/cnitool", "plugins/plugins/main/bridge", "plugins/plugins/main/ptp", "plugins/plugins/ipam/host-local",
		"plugins/plugins/meta/portmap", "plugins/plugins/meta/tuning", "plugins/plugins/meta/firewall", "plugins/plugins/meta/bandwidth",
		"plugins/plugins/meta/sbr", "plugins/plugins/main/macvlan", "plugins/plugins/main/host-device", "plugins/plugins/main/ipvlan",
	} {
		if _, err := os.Stat(filepath.Join(buildDir, filepath.Base(pkg))); err != nil {
			errs = append(errs, build("-modfile=../tools.mod", "-o", buildDir+"/", cni+pkg))
		}
	}
	return buildDir, errors.Join(append(errs, build("-o", filepath.Join(buildDir, "overlay"), "."))...)
})

func build(args ...string) error {
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %v: %w\n%s", args, err, out)
	}
	return nil
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "overlay-cni-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buildDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// host is a network namespace in which the real plugins run, with directories of its own.
type host struct {
	bin, dir, ns string
	network      string // also the prefix of the names of its containers' namespaces
}

func newHost(t *testing.T, lease string) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{bin: bin, dir: t.TempDir()}
	h.network = fmt.Sprintf("cp%d-%08x", os.Getpid(), rand.Uint32())
	h.ns = h.addNamespace(t, "host")
	if err := os.WriteFile(h.subnetFile(), []byte(lease), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) subnetFile() string { return filepath.Join(h.dir, "subnet.env") }

// addNamespace makes a namespace that is removed with the test, and returns its path.
func (h *host) addNamespace(t *testing.T, name string) string {
	t.Helper()
	name = h.network + name
	mustRun(t, "ip", "netns", "add", name)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	mustRun(t, "ip", "-n", name, "link", "set", "lo", "up")
	return filepath.Join("/run/netns", name)
}

func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// conf is the configuration that a runtime hands over; more is added to it.
func (h *host) conf(more map[string]any) []byte {
	conf := map[string]any{
		"cniVersion": "1.1.0", "name": h.network, "type": "overlay",
		"subnetFile": h.subnetFile(), "dataDir": filepath.Join(h.dir, "state"),
		"ipam":     map[string]any{"dataDir": filepath.Join(h.dir, "ipam")},
		"delegate": map[string]any{"hairpinMode": true, "isDefaultGateway": true},
	}
	for key, value := range more {
		conf[key] = value
	}
	out, err := json.Marshal(conf)
	if err != nil {
		panic(err) // of values that the test has written
	}
	return out
}

// request is what a runtime asks of the plugin.
type request struct {
	command, id, ifName, netns, args string
	more                             map[string]any
	mounts                           string // commands of a shell that make what only the plugin is to see
}

// call runs the plugin as a runtime does: in the host's namespace, with nothing in the environment but CNI's.
func (h *host) call(r request) ([]byte, error) {
	cmd := exec.Command("nsenter", "--net="+h.ns, filepath.Join(h.bin, "overlay"))
	if r.mounts != "" {
		cmd = exec.Command("nsenter", "--net="+h.ns, "unshare", "--mount", "sh", "-ec", r.mounts+"\nexec \"$0\"", filepath.Join(h.bin, "overlay"))
	}
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + h.bin, "CNI_COMMAND=" + r.command, "CNI_CONTAINERID=" + r.id,
		"CNI_IFNAME=" + r.ifName, "CNI_NETNS=" + r.netns, "CNI_ARGS=" + r.args,
	}
	cmd.Stdin = bytes.NewReader(h.conf(r.more))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		answer := &types.Error{}
		if json.Unmarshal(stdout.Bytes(), answer) == nil && answer.Msg != "" {
			return nil, answer
		}
		return nil, fmt.Errorf("%s %s: %w\n%s%s", r.command, r.id, err, &stdout, &stderr)
	}
	return stdout.Bytes(), nil
}

// add attaches a container and returns its addresses and the result as it came.
func (h *host) add(r request) ([]netip.Prefix, json.RawMessage, error) {
	r.command = "ADD"
	out, err := h.call(r)
	if err != nil {
		return nil, nil, err
	}
	var result types100.Result
	if err := json.Unmarshal(out, &result); err != nil {
		return nil, nil, fmt.Errorf("%w in %s", err, out)
	}
	var found []netip.Prefix
	for _, ip := range result.IPs {
		p, err := netip.ParsePrefix(ip.Address.String())
		if err != nil {
			return nil, nil, err
		}
		found = append(found, p)
	}
	return found, out, nil
}

func (h *host) mustAdd(t *testing.T, r request) ([]netip.Prefix, json.RawMessage) {
	t.Helper()
	ips, result, err := h.add(r)
	if err != nil {
		t.Fatal(err)
	}
	return ips, result
}

func (h *host) mustCall(t *testing.T, r request) {
	t.Helper()
	if _, err := h.call(r); err != nil {
		t.Fatalf("%s %s: %v", r.command, r.id, err)
	}
}

// ip runs ip(8) in a namespace.
func ip(t *testing.T, ns string, args ...string) string {
	t.Helper()
	return mustRun(t, "ip", append([]string{"-n", filepath.Base(ns)}, args...)...)
}

// wantClean fails if an attachment has left anything on the host.
func (h *host) wantClean(t *testing.T) {
	t.Helper()
	if left := filesBelow(t, filepath.Join(h.dir, "state")); len(left) != 0 {
		t.Errorf("state left: %v", left)
	}
	if left := h.reserved(t); len(left) != 0 {
		t.Errorf("addresses left: %v", left)
	}
	// The kernel takes a namespace down, and the veths in it, after "ip netns del" has returned.
	left := ""
	for range 100 {
		if left = ip(t, h.ns, "-o", "link", "show", "type", "veth"); left == "" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("links left: %s", left)
}

// reserved lists the addresses that host-local holds.
func (h *host) reserved(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, name := range filesBelow(t, filepath.Join(h.dir, "ipam")) {
		if _, err := netip.ParseAddr(filepath.Base(name)); err == nil {
			found = append(found, filepath.Base(name))
		}
	}
	return found
}
