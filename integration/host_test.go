package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Host is a machine of the overlay: a namespace on a segment, with directories of its own.
type Host struct {
	*Node
	lab    *Lab
	Addrs  []netip.Addr // on the underlay, IPv4 before IPv6
	RunDir string
	State  string // --state-dir
	varLib string // stands for /var/lib to the CNI plugins
	confs  string // CNI configuration
	Daemon *Process
	seq    int // containers made
}

// NewHost puts a host on the segment under the given number, with a default route through the segment's gateway.
func (l *Lab) NewHost(s *Segment, number int) *Host {
	l.t.Helper()
	dir := l.t.TempDir()
	h := &Host{
		Node:   l.node(fmt.Sprintf("h%d-%d", s.index, number)),
		lab:    l,
		RunDir: filepath.Join(dir, "run"), State: filepath.Join(dir, "state"),
		varLib: filepath.Join(dir, "varlib"), confs: filepath.Join(dir, "net.d"),
	}
	for _, d := range []string{h.RunDir, h.State, filepath.Join(h.varLib, "cni"), h.confs, h.wireguard()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			l.t.Fatal(err)
		}
	}
	s.Plug(h.Node, "eth0", number)
	s.DefaultRoute(h.Node, "eth0")
	for _, a := range s.Addrs(number) {
		h.Addrs = append(h.Addrs, a.Addr())
	}
	h.SetDelegate(map[string]any{"isDefaultGateway": true})
	return h
}

// NewHosts puts count hosts on the segment, from number 11 on.
func (l *Lab) NewHosts(s *Segment, count int) []*Host {
	l.t.Helper()
	var hosts []*Host
	for i := range count {
		hosts = append(hosts, l.NewHost(s, 11+i))
	}
	return hosts
}

// SetDelegate writes the host's CNI configuration with the given delegate.
func (h *Host) SetDelegate(delegate map[string]any) {
	h.t.Helper()
	h.SetConf(map[string]any{
		"cniVersion": "1.1.0", "name": "overlay",
		"plugins": []any{h.PluginConf(delegate)},
	})
}

// PluginConf is the configuration of the plugin alone.
func (h *Host) PluginConf(delegate map[string]any) map[string]any {
	return map[string]any{"type": "overlay", "subnetFile": h.SubnetFile(), "delegate": delegate}
}

// SetConf writes the host's CNI configuration.
func (h *Host) SetConf(conf any) {
	h.t.Helper()
	b, err := json.Marshal(conf)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.confs, "10-overlay.conflist"), b, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// SubnetFile is the file that overlayd writes for container runtimes.
func (h *Host) SubnetFile() string { return filepath.Join(h.RunDir, "subnet.env") }

// wireguard stands for /run/wireguard, where the wireguard links have their sockets that the kernel does not serve.
func (h *Host) wireguard() string { return filepath.Join(filepath.Dir(h.RunDir), "wireguard") }

// Args is the command of every start of overlayd on this host: the host has its namespace's name, and a /var/lib and a
// /run/wireguard of its own.
// What args give takes the place of the usual.
func (h *Host) Args(args ...string) []string {
	script := `echo "$0" >/proc/sys/kernel/hostname && mkdir -p /run/wireguard && mount --bind "$1" /var/lib && ` +
		`mount --bind "$2" /run/wireguard && shift 2 && exec "$@"`
	command := []string{"unshare", "--uts", "--mount", "sh", "-c", script, h.Name, h.varLib, h.wireguard(), bin("overlayd")}
	for _, usual := range []string{"--config=/dev/null", "--etcd-endpoints=" + h.lab.endpoint(),
		"--run-dir=" + h.RunDir, "--state-dir=" + h.State} {
		name, _, _ := strings.Cut(usual, "=")
		if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, name+"=") }) {
			command = append(command, usual)
		}
	}
	return append(command, args...)
}

// Start starts overlayd.
func (h *Host) Start(args ...string) {
	h.t.Helper()
	h.StartEnv(nil, args...)
}

// StartEnv starts overlayd with more in its environment.
func (h *Host) StartEnv(env []string, args ...string) {
	h.t.Helper()
	h.Daemon = h.Spawn("overlayd on "+h.Name, env, h.Args(args...)...)
}

// Once runs overlayd for a task that ends by itself and returns what it wrote and its exit code.
func (h *Host) Once(args ...string) (out string, code int) {
	h.t.Helper()
	p := h.Spawn("overlayd on "+h.Name, nil, h.Args(args...)...)
	code = p.Wait()
	return p.Output.String(), code
}

// Overlayctl runs overlayctl on the host and returns its standard output; a failure ends the test.
func (h *Host) Overlayctl(args ...string) string {
	h.t.Helper()
	out, err := h.TryOverlayctl(args...)
	if err != nil {
		h.t.Fatalf("overlayctl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// TryOverlayctl is Overlayctl for commands that may fail; the error holds standard error.
func (h *Host) TryOverlayctl(args ...string) (string, error) {
	cmd := h.Command(append([]string{bin("overlayctl"), "--config", "/dev/null",
		"--etcd-endpoints", h.lab.endpoint()}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), err
}

// WaitReady waits until overlayd says that the kernel is complete.
func (h *Host) WaitReady() {
	h.t.Helper()
	eventually(h.t, h.Name+" is ready", func() error {
		if !h.Daemon.Running() {
			h.t.Fatalf("overlayd on %s ended", h.Name)
		}
		status, body, err := h.Get("http://127.0.0.1:9417/readyz")
		if err == nil && status != 200 {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		return err
	})
}

// WaitPeers waits until the host has a route to the subnets of count other hosts in each family.
func (h *Host) WaitPeers(count int) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("%s knows %d peers", h.Name, count), func() error { return h.hasPeers(count) })
}

// hasPeers says what is wrong if the host does not have a route to count peers in each family.
func (h *Host) hasPeers(count int) error {
	for _, family := range h.lab.families() {
		out, err := h.Try("ip", family, "route", "show")
		if err != nil {
			return err
		}
		n := peerRoutes(out)
		if strings.Contains(out, "-wg ") { // one route leads to all
			s, err := h.status()
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				if p.Path == "wireguard" {
					n++
				}
			}
		}
		if n != count {
			return fmt.Errorf("%d peers in\n%s", n, out)
		}
	}
	return nil
}

// peerRoutes counts the routes to other hosts' subnets in ip's output.
func peerRoutes(routes string) int {
	n := 0
	for line := range strings.Lines(routes) {
		inOverlay := strings.HasPrefix(line, "10.5.") || strings.HasPrefix(line, "fc00:5:")
		if inOverlay && (strings.Contains(line, " via ") || strings.Contains(line, " dev overlay.udp ")) { // that of a process has no gateways
			n++
		}
	}
	return n
}

// families are the options of ip for the laboratory's address families.
func (l *Lab) families() []string {
	var f []string
	if l.Stack.V4 {
		f = append(f, "-4")
	}
	if l.Stack.V6 {
		f = append(f, "-6")
	}
	return f
}

// startAll starts overlayd on all hosts and waits until each reaches each.
func startAll(t testing.TB, hosts []*Host, args ...string) {
	t.Helper()
	for _, h := range hosts {
		h.Start(args...)
	}
	for _, h := range hosts {
		h.WaitReady()
		h.WaitPeers(len(hosts) - 1)
	}
}
