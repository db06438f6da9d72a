package integration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/ports"
)

// manyEnv is the number of containers on the full host of BenchmarkCNI.
const manyEnv = "OVERLAYD_BENCH_CONTAINERS"

// BenchmarkCNI calls the plugin through cnitool, with portmap chained as in the shipped conflist, and in turn with it:
// bridge, the reference plugin called directly with the configuration that ours would give it; and named, ours told to
// run that plugin, which shows what ours adds.
func BenchmarkCNI(b *testing.B) {
	for _, m := range []struct {
		name             string
		atOnce, benchFor int
	}{
		{"alone", 1, 60},
		{"at-once=20", 20, 5},
	} {
		b.Run(m.name, func(b *testing.B) {
			r := newCNIRig(b, m.atOnce, "overlay", "bridge", "named")
			r.measure(1) // the bridges are there, the binaries in memory
			took := r.measure(m.benchFor)
			for _, verb := range cniVerbs {
				theirs, ours := took["bridge"][verb], took["overlay"][verb]
				b.ReportMetric(1000*median(ours), "ms/"+verb+"-p50")
				b.ReportMetric(1000*quantile(ours, 0.99).Seconds(), "ms/"+verb+"-p99")
				b.ReportMetric(1000*median(theirs), "ms/"+verb+"-bridge-p50")
				b.ReportMetric(median(ours)/median(theirs), verb+"/bridge")
				b.ReportMetric(1000*(median(took["named"][verb])-median(theirs)), "ms/"+verb+"-added")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkCNIBeside compares a host with nearly as many containers as a bridge can take with an empty one: ours, bridge with
// host-local, and what the kernel alone takes for a port.
func BenchmarkCNIBeside(b *testing.B) {
	many, err := strconv.Atoi(cmp.Or(os.Getenv(manyEnv), "1000"))
	if err != nil {
		b.Fatal(err)
	}
	b.Run(fmt.Sprint("containers=", many), func(b *testing.B) {
		r := newCNIRig(b, 1, "overlay", "overlay-full", "bridge", "bridge-full")
		r.contenders[1].fill(many)
		r.contenders[3].fill(many)
		r.measure(1)
		took := r.measure(40)
		ratio := func(kind, verb string) {
			full, empty := median(took[kind+"-full"][verb]), median(took[kind][verb])
			b.ReportMetric(full/empty, kind+"-"+verb+"/empty")
			b.ReportMetric(1000*(full-empty), "ms/"+kind+"-"+verb+"-more")
		}
		for _, kind := range []string{"overlay", "bridge"} {
			for _, verb := range cniVerbs {
				ratio(kind, verb)
			}
		}
		ratio("overlay", "ip-add")
		ratio("overlay", "ip-del")
		for _, verb := range cniVerbs {
			b.ReportMetric(median(took["overlay-full"][verb])/median(took["bridge-full"][verb]), verb+"/bridge")
		}
		b.ReportMetric(0, "ns/op")
	})
}

// cniVerbs are cnitool's, in the order of a container's life.
var cniVerbs = []string{"add", "check", "del"}

// cniRig is hosts that differ in nothing but the plugin.
type cniRig struct {
	contenders []*contender
	containers []*Node
}

// contender is a host and what is called on it.
type contender struct {
	*mounted
	name string
}

func newCNIRig(b *testing.B, atOnce int, names ...string) *cniRig {
	b.Helper()
	b.Setenv("TMPDIR", "/dev/shm") // disks are not what is measured
	lab := newLab(b, Stack{V4: true})
	segment := lab.NewSegment(1)
	r := &cniRig{}
	delegate := map[string]any{"hairpinMode": true, "isDefaultGateway": true}
	named := map[string]any{"type": "bridge", "hairpinMode": true, "isDefaultGateway": true}
	for i, name := range names {
		h := lab.NewHost(segment, 11+i)
		writeFile(h, h.SubnetFile(), "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.16.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
		plugin := map[string]map[string]any{
			"overlay": h.PluginConf(delegate),
			"named":   h.PluginConf(named),
			"bridge": {
				"type": "bridge", "mtu": 1450, "hairpinMode": true, "isGateway": true, "isDefaultGateway": true,
				"ipam": map[string]any{
					"type":   "host-local",
					"ranges": [][]map[string]any{{{"subnet": "10.5.16.0/20"}}},
					"routes": []map[string]any{{"dst": "10.5.0.0/16"}},
				},
			},
		}[strings.TrimSuffix(name, "-full")]
		h.SetConf(map[string]any{"cniVersion": "1.0.0", "name": "overlay", "plugins": []any{plugin, shippedPortmap(b)}})
		loadGuard(h)
		r.contenders = append(r.contenders, &contender{h.mount(), name})
	}
	for i := range atOnce {
		r.containers = append(r.containers, lab.node(fmt.Sprint("c", i)))
	}
	return r
}

// loadGuard loads the rules that the daemon would hold, for the plugin to add to.
func loadGuard(h *Host) {
	h.t.Helper()
	for _, family := range []string{"bridge", "inet"} {
		cmd := h.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("add table " + family + " overlayd\n" + strings.Join(ports.Rules(family), "\n") + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			h.t.Fatalf("nft: %v: %s", err, out)
		}
	}
}

// shippedPortmap is what the shipped conflist chains.
func shippedPortmap(b *testing.B) any {
	b.Helper()
	data, err := os.ReadFile("../etc/10-overlay.conflist")
	if err != nil {
		b.Fatal(err)
	}
	var list struct{ Plugins []any }
	if err := json.Unmarshal(data, &list); err != nil {
		b.Fatal(err)
	}
	return list.Plugins[1]
}

// call runs cnitool and tells how long it took.
func (c *contender) call(verb string, container *Node) (time.Duration, error) {
	cmd := c.Command(bin("cnitool"), verb, "overlay", container.Path())
	cmd.Env = append(cmd.Env, "CNI_PATH="+bin(""), "NETCONFPATH="+c.confs)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %s %s: %w\n%s", c.name, verb, container.Name, err, out)
	}
	return time.Since(start), err
}

// port has the kernel do what no ADD can do without, one ip after the other: a port of the bridge with an address of which the
// neighbours are told, and what removes it.
func (c *contender) port(container *Node) (add, del time.Duration) {
	do := func(script string) time.Duration {
		start := time.Now()
		c.Exec("sh", "-ec", script)
		return time.Since(start)
	}
	inside := "ip -n " + container.Name
	add = do("ip link add bench mtu 1450 type veth peer name eth0 netns " + container.Name + "; ip link set bench up; " +
		"nsenter --net=" + container.Path() + " sysctl -qw net.ipv4.conf.eth0.arp_notify=1 net.ipv6.conf.eth0.addr_gen_mode=1; " +
		inside + " address add 10.5.31.254/20 dev eth0; " + inside + " link set eth0 up; ip link set bench master cni0; " +
		inside + " link set eth0 address 0a:ff:0a:05:1f:fe")
	return add, do("ip link del bench")
}

// each calls verb for all containers at once.
func (c *contender) each(verb string, containers []*Node) []time.Duration {
	took, errs := make([]time.Duration, len(containers)), make([]error, len(containers))
	var all sync.WaitGroup
	for i, container := range containers {
		all.Go(func() { took[i], errs[i] = c.call(verb, container) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			c.t.Fatal(err)
		}
	}
	return took
}

// fill attaches containers that stay.
func (c *contender) fill(count int) {
	var containers []*Node
	for i := range count {
		containers = append(containers, c.lab.node(fmt.Sprintf("%s-%d", c.name, i)))
	}
	for len(containers) > 0 {
		n := min(8, len(containers))
		c.each("add", containers[:n])
		containers = containers[n:]
	}
}

// measure lets containers come and go, on one host after the other.
func (r *cniRig) measure(rounds int) map[string]map[string][]time.Duration {
	took := map[string]map[string][]time.Duration{}
	for range rounds {
		for _, c := range r.contenders {
			if took[c.name] == nil {
				took[c.name] = map[string][]time.Duration{}
			}
			for _, verb := range cniVerbs {
				took[c.name][verb] = append(took[c.name][verb], c.each(verb, r.containers)...)
			}
			add, del := c.port(r.containers[0])
			took[c.name]["ip-add"], took[c.name]["ip-del"] = append(took[c.name]["ip-add"], add), append(took[c.name]["ip-del"], del)
		}
	}
	return took
}
