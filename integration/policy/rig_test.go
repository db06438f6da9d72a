package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/overlayd/overlayd/integration/internal/proc"
)

// rigCount tells the rigs of one run apart.
var rigCount atomic.Int64

// The families, as indices of addresses.
const (
	v4 = iota
	v6
)

// rig is two hosts on a wire with an etcd, and somebody outside who has no part in the overlay.
type rig struct {
	t        testing.TB
	prefix   string
	wire     *node
	etcd     *node
	server   *proc.Process // etcd itself
	etcdDir  string
	etcdPath string
	hosts    []*host
	outside  *pod // on the wire; its servers are those of every container
	pods     []*pod
	control  [2]*pod // one on each host, that no policy is about
	runs     int     // of probes, so that no port is used twice
	made     int     // containers
	world    *world
	paper    bool    // there are no hosts: what is done is done to the world alone
	marker   *marker // nil: steps are not marked
	loose    bool    // something was done that the marker does not tell of
}

// host is a machine of the overlay.
type host struct {
	*node
	rig                         *rig
	runDir, state, varLib, conf string
	addrs                       [2]netip.Addr // on the wire
	daemon                      *proc.Process
}

// number of the etcd, the outside client and the first host on the wire.
const (
	etcdNumber    = 100
	outsideNumber = 50
	hostNumber    = 11
)

// newRig makes the wire, the etcd and two hosts whose daemons are ready. args are more of overlayd's.
func newRig(t testing.TB, args ...string) *rig {
	t.Helper()
	return newRigOf(t, networkConfig, args...)
}

func newRigOf(t testing.TB, network string, args ...string) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	r := &rig{t: t, prefix: fmt.Sprintf("%s%d-%d-", namePrefix, os.Getpid(), rigCount.Add(1)), world: newWorld()}
	r.wire = newNode(t, r.prefix+"wire")
	r.wire.exec("ip", "link", "add", "br0", "type", "bridge")
	r.wire.exec("ip", "link", "set", "br0", "up")
	r.startEtcd(network)
	for i := range 2 {
		r.hosts = append(r.hosts, r.newHost(i, args))
	}
	for _, h := range r.hosts {
		h.waitReady()
	}
	r.outside = &pod{node: newNode(t, r.prefix+"outside"), rig: r, ns: "", podName: "outside"}
	r.plug(r.outside.node, outsideNumber)
	r.outside.addrs = wireAddrs(outsideNumber)
	r.outside.open()
	for _, h := range r.hosts {
		r.routeOutside(h)
	}
	for i, h := range r.hosts {
		r.control[i] = r.newPod(h, "control", fmt.Sprintf("c%d", i), nil)
	}
	return r
}

// wireAddrs are the addresses of a number on the wire.
func wireAddrs(number int) [2]netip.Addr {
	return [2]netip.Addr{
		netip.AddrFrom4([4]byte{172, 30, 1, byte(number)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:30:1::%x", number)),
	}
}

// plug connects a node to the wire.
func (r *rig) plug(n *node, number int) {
	r.t.Helper()
	port := fmt.Sprintf("p%d", number)
	r.wire.exec("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", n.name)
	r.wire.exec("ip", "link", "set", port, "master", "br0", "up")
	n.exec("ip", "link", "set", "eth0", "up")
	a := wireAddrs(number)
	n.exec("ip", "address", "add", a[v4].String()+"/24", "dev", "eth0")
	n.exec("ip", "address", "add", a[v6].String()+"/64", "dev", "eth0", "nodad")
	n.exec("ip", "route", "add", "default", "via", wireAddrs(1)[v4].String(), "dev", "eth0") // to nobody: that there is one is enough
	n.exec("ip", "route", "add", "default", "via", wireAddrs(1)[v6].String(), "dev", "eth0")
}

// startEtcd starts Debian's etcd with the network's configuration.
func (r *rig) startEtcd(network string) {
	r.t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		r.t.Fatal("needs an etcd: apt-get install etcd-server")
	}
	r.etcd = newNode(r.t, r.prefix+"etcd")
	r.plug(r.etcd, etcdNumber)
	r.etcdPath = path
	r.serveEtcd(r.t.TempDir())
	r.put("/coreos.com/network/config", network)
}

// networkConfig is the network's, in etcd.
const networkConfig = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00:5::/48","Backend":{"Type":"vxlan"}}`

// serveEtcd has etcd serve what is in a directory.
func (r *rig) serveEtcd(dir string) {
	r.t.Helper()
	r.server = r.etcd.spawn("etcd", r.etcdPath, "--data-dir", dir, "--log-level", "error", "--unsafe-no-fsync",
		"--listen-client-urls", "http://[::]:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "default=http://127.0.0.1:2380")
	eventually(r.t, "etcd serves", func() error {
		out, err := r.etcdctl("endpoint", "health")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	r.etcdDir = dir
}

// etcdctl runs Debian's etcdctl where etcd is, so that what is under test is not what looks at it.
func (r *rig) etcdctl(args ...string) (string, error) {
	cmd := r.etcd.command(append([]string{"etcdctl"}, args...)...)
	cmd.Env = append(cmd.Env, "ETCDCTL_API=3")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *rig) put(key, value string) {
	r.t.Helper()
	if out, err := r.etcdctl("put", "--", key, value); err != nil {
		r.t.Fatalf("etcdctl put %s: %v: %s", key, err, out)
	}
}

func (r *rig) endpoint() string { return fmt.Sprintf("http://%s:2379", wireAddrs(etcdNumber)[v4]) }

// newHost makes a host and starts its daemon.
func (r *rig) newHost(i int, args []string) *host {
	r.t.Helper()
	dir := r.t.TempDir()
	h := &host{node: newNode(r.t, fmt.Sprintf("%sh%d", r.prefix, i)), rig: r, addrs: wireAddrs(hostNumber + i),
		runDir: filepath.Join(dir, "run"), state: filepath.Join(dir, "state"), varLib: filepath.Join(dir, "varlib"), conf: filepath.Join(dir, "net.d")}
	for _, d := range []string{h.runDir, h.state, filepath.Join(h.varLib, "cni"), h.conf} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	r.plug(h.node, hostNumber+i)
	conf, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "overlay", "plugins": []any{
		map[string]any{"type": "overlay", "subnetFile": filepath.Join(h.runDir, "subnet.env"),
			"capabilities": map[string]bool{"ips": true},
			"delegate":     map[string]any{"isDefaultGateway": true, "hairpinMode": true}},
		map[string]any{"type": "portmap", "snat": true, "backend": "nftables", "capabilities": map[string]bool{"portMappings": true}},
	}})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.conf, "10-overlay.conflist"), conf, 0o600); err != nil {
		r.t.Fatal(err)
	}
	h.exec("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0") // as ours in sysctl.d has it
	h.start(args...)
	return h
}

// unseenEnv, set, has hosts find no br_netfilter, which this kernel may have built in.
const unseenEnv = "OVERLAYD_NO_BR_NETFILTER"

// inVarLib is a command with the host's own /var/lib, and its name.
func (h *host) inVarLib(args ...string) []string {
	script := `echo "$0" >/proc/sys/kernel/hostname && mount --bind "$1" /var/lib && shift && exec "$@"`
	if os.Getenv(unseenEnv) != "" {
		script = "mount -t tmpfs none /proc/sys/net/bridge && " + script
	}
	return append([]string{"unshare", "--uts", "--mount", "sh", "-c", script, h.name, h.varLib}, args...)
}

// start starts overlayd.
func (h *host) start(args ...string) {
	h.t.Helper()
	h.daemon = h.spawn("overlayd on "+h.name, h.inVarLib(append([]string{bin("overlayd"), "--config=/dev/null", "--ip-masq",
		"--etcd-endpoints=" + h.rig.endpoint(), "--run-dir=" + h.runDir, "--state-dir=" + h.state}, args...)...)...)
}

// waitReady waits until overlayd says that the kernel is complete, and has a route to the other host in each family.
func (h *host) waitReady() {
	h.t.Helper()
	eventually(h.t, h.name+" is ready", func() error {
		select {
		case <-h.daemon.Done():
			h.t.Fatalf("overlayd on %s has ended", h.name)
		default:
		}
		if out, err := h.try("curl", "-fsS", "--max-time", "2", "http://127.0.0.1:9417/readyz"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, family := range []string{"-4", "-6"} {
			out, err := h.try("ip", family, "route", "show")
			if err != nil || !slices.ContainsFunc(strings.Split(out, "\n"), func(l string) bool {
				return strings.Contains(l, " via ") && !strings.HasPrefix(l, "default")
			}) {
				return fmt.Errorf("no route to the peer: %v\n%s", err, out)
			}
		}
		return nil
	})
}

// subnets are the host's, as its daemon writes them for the plugin.
func (h *host) subnets() [2]netip.Prefix {
	h.t.Helper()
	env, err := os.ReadFile(filepath.Join(h.runDir, "subnet.env"))
	if err != nil {
		h.t.Fatal(err)
	}
	var subnets [2]netip.Prefix
	for line := range strings.Lines(string(env)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if i := slices.Index([]string{"FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"}, name); i >= 0 {
			subnets[i] = netip.MustParsePrefix(value).Masked()
		}
	}
	return subnets
}

// routeOutside lets who is outside reach the host's containers at their own addresses.
func (r *rig) routeOutside(h *host) {
	r.t.Helper()
	for family, subnet := range h.subnets() {
		r.outside.exec("ip", "route", "replace", subnet.String(), "via", h.addrs[family].String())
	}
}

// overlayctl runs overlayctl on the host, with its standard input, and returns its standard output.
func (h *host) overlayctl(stdin string, args ...string) (string, error) {
	// Some commands ask the daemon, some ask etcd: both have to be told where.
	cmd := h.command(h.inVarLib(append([]string{bin("overlayctl"), "--config=/dev/null", "--etcd-endpoints=" + h.rig.endpoint(),
		"--run-dir=" + h.runDir}, args...)...)...)
	var stderr strings.Builder
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("overlayctl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), err
}

// must is overlayctl that has to succeed, on the first host.
func (r *rig) must(stdin string, args ...string) string {
	r.t.Helper()
	out, err := r.hosts[0].overlayctl(stdin, args...)
	if err != nil {
		r.t.Fatalf("%v\nof\n%s", err, stdin)
	}
	return out
}
