package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// chain is a network of a host with no runtime on it: the test itself is the runtime, through libcni as they are.
type chain struct {
	t    *testing.T
	box  *Box
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

// newChain makes a host whose subnet.env is there and whose overlayd is not, and a network of the shipped
// configuration with bandwidth behind it.
func newChain(t *testing.T) *chain {
	t.Helper()
	lab := newLab(t, Stack{V4: true, V6: true})
	box := lab.NewBox(lab.NewSegment(1), 11)
	writeFile(box.Host, box.SubnetFile(),
		wholeEnv+"FLANNEL_IPV6_NETWORK=fc00:5::/48\nFLANNEL_IPV6_SUBNET=fc00:5:0:7::1/64\n")
	box.Run("ip", "netns", "add", "c")
	var conflist map[string]any
	if err := json.Unmarshal(shippedConflist(t, "1.1.0"), &conflist); err != nil {
		t.Fatal(err)
	}
	bandwidth := map[string]any{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}}
	conflist["plugins"] = append(conflist["plugins"].([]any), bandwidth)
	list := parseConflist(t, mustJSON(t, conflist))
	return &chain{t: t, box: box, cni: box.libcni(), list: list}
}

// add runs ADD and returns the container's addresses.
func (c *chain) add(rt *libcni.RuntimeConf) []netip.Addr {
	c.t.Helper()
	addrs, err := c.tryAdd(rt)
	if err != nil {
		c.t.Fatalf("ADD: %v", err)
	}
	return addrs
}

// wantAddrs runs ADD and fails the test unless the container gets the addresses.
func (c *chain) wantAddrs(rt *libcni.RuntimeConf, want string) {
	c.t.Helper()
	if addrs := fmt.Sprint(c.add(rt)); addrs != want {
		c.t.Errorf("ADD gives %s, want %s", addrs, want)
	}
}

func (c *chain) tryAdd(rt *libcni.RuntimeConf) ([]netip.Addr, error) {
	answer, err := c.cni.AddNetworkList(c.t.Context(), c.list, rt)
	if err != nil {
		return nil, err
	}
	result, err := types100.NewResultFromResult(answer)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		// Nomad takes the first sandbox's interface with an address for the allocation's.
		if i := result.Interfaces[*ip.Interface]; i.Name != rt.IfName || i.Sandbox != rt.NetNS {
			return nil, fmt.Errorf("%s is on %s in %q, want %s in %q", ip.Address.IP, i.Name, i.Sandbox, rt.IfName, rt.NetNS)
		}
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		addrs = append(addrs, a.Unmap())
	}
	return addrs, nil
}

func (c *chain) check(rt *libcni.RuntimeConf) {
	c.t.Helper()
	if err := c.cni.CheckNetworkList(c.t.Context(), c.list, rt); err != nil {
		c.t.Errorf("CHECK: %v", err)
	}
}

func (c *chain) del(rt *libcni.RuntimeConf) {
	c.t.Helper()
	if err := c.cni.DelNetworkList(c.t.Context(), c.list, rt); err != nil {
		c.t.Errorf("DEL: %v", err)
	}
}

// state is the file of the attachment.
func (c *chain) state(rt *libcni.RuntimeConf) string {
	c.t.Helper()
	state, err := os.ReadFile(filepath.Join(c.box.varLib, "cni", "overlay", "overlay", rt.ContainerID+":eth0.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(state)
}

// ip runs ip in the container, whose namespace is named in the box.
func (c *chain) ip(args ...string) string {
	c.t.Helper()
	return c.box.Run(append([]string{"ip", "-n", "c"}, args...)...)
}

// without is the same container as runtimes name it when they know no more.
func without(rt *libcni.RuntimeConf, netns, args bool) *libcni.RuntimeConf {
	less := *rt
	if netns {
		less.NetNS = ""
	}
	if args {
		less.Args = nil
	}
	return &less
}

// mapped says that host port 8080 is to lead to the container's port 80.
func mapped(hostIP string) []map[string]any {
	return []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": hostIP}}
}

// wantMapped fails the test unless as many rules send packets for the mapped port to a container.
func (c *chain) wantMapped(count int) {
	c.t.Helper()
	rules := c.box.Exec("nft", "list", "ruleset")
	if n := len(regexp.MustCompile(`dnat (ip )?to 10\.5\.7\.`).FindAllString(rules, -1)); n != count {
		c.t.Errorf("%d rules map a port, want %d:\n%s", n, count, rules)
	}
}

// TestRuntimeNerdctl calls as nerdctl's OCI hook does: DEL with no namespace before every ADD, and never another DEL;
// the IPv4 address and the MAC in CNI_ARGS, the IPv6 address as a capability.
func TestRuntimeNerdctl(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	rt := &libcni.RuntimeConf{
		ContainerID: "default-" + strings.Repeat("5a", 32), NetNS: "/run/netns/c", IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"NERDCTL_CNI_DHCP_HOSTNAME", "web"}, {"IP", "10.5.7.77"}, {"MAC", "02:00:00:00:00:77"},
		},
		CapabilityArgs: map[string]any{"portMappings": mapped("0.0.0.0"), "ips": []string{"fc00:5:0:7::77"}},
	}
	for range 2 { // again after a restart of the container's process
		c.del(without(rt, true, false))
		c.wantAddrs(rt, "[10.5.7.77 fc00:5:0:7::77]")
		c.check(rt)
		c.wantMapped(1)
	}
	if link := c.ip("link", "show", "eth0"); !strings.Contains(link, "02:00:00:00:00:77") {
		t.Errorf("the MAC is not the wanted one: %s", link)
	}
	if state := c.state(rt); !strings.Contains(state, `"NERDCTL_CNI_DHCP_HOSTNAME":"web"`) {
		t.Errorf("the attachment's file has not nerdctl's label:\n%s", state)
	}
	for range 2 {
		c.del(without(rt, true, false))
	}
	c.wantMapped(0)
	c.box.WaitNothingLeft()
}

// TestRuntimeNomad calls as Nomad's client does: ADD up to three times, CHECK when the agent starts, DEL with no
// CNI_ARGS.
func TestRuntimeNomad(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	const alloc = "0b9e7c52-52d6-4b0a-9a58-6e0a7e2f1c11"
	rt := &libcni.RuntimeConf{
		ContainerID: alloc, NetNS: "/run/netns/c", IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "true"}, {"team", "web"}, {"NOMAD_REGION", "global"}, {"NOMAD_NAMESPACE", "default"},
			{"NOMAD_JOB_ID", "web"}, {"NOMAD_GROUP_NAME", "front"}, {"NOMAD_ALLOC_ID", alloc},
		},
		CapabilityArgs: map[string]any{"portMappings": mapped("")},
	}
	subnetEnv := c.box.SubnetFile()
	if err := os.Rename(subnetEnv, subnetEnv+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.tryAdd(rt); err == nil {
		t.Fatal("ADD succeeds before overlayd has a lease")
	}
	if err := os.Rename(subnetEnv+".away", subnetEnv); err != nil {
		t.Fatal(err)
	}
	c.wantAddrs(rt, "[10.5.7.2 fc00:5:0:7::2]")
	for _, label := range []string{`"NOMAD_JOB_ID":"web"`, `"NOMAD_GROUP_NAME":"front"`, `"NOMAD_ALLOC_ID":"` + alloc} {
		if state := c.state(rt); !strings.Contains(state, label) {
			t.Errorf("the attachment's file has no %s:\n%s", label, state)
		}
	}

	// A CHECK that fails has Nomad destroy the allocation's network.
	if err := os.Remove(subnetEnv); err != nil {
		t.Fatal(err)
	}
	c.check(rt)
	c.check(without(rt, false, true))
	c.ip("address", "delete", "10.5.7.2/24", "dev", "eth0")
	if err := c.cni.CheckNetworkList(t.Context(), c.list, rt); err == nil {
		t.Error("CHECK is content with a container that has lost its address")
	}

	c.wantMapped(1)
	c.del(without(rt, false, true))
	c.del(without(rt, true, true))
	c.wantMapped(0)
	c.box.WaitNothingLeft()
}

// TestRuntimePodman calls as podman 4 does: the MAC in CNI_ARGS, more than one address as a capability, aliases that
// no plugin of the chain knows.
func TestRuntimePodman(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	rt := &libcni.RuntimeConf{
		ContainerID: strings.Repeat("c0", 32), NetNS: "/run/netns/c", IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "web"}, {"MAC", "02:00:00:00:00:88"}},
		CapabilityArgs: map[string]any{
			"ips": []string{"10.5.7.88", "fc00:5:0:7::88"}, "portMappings": mapped(""),
			"aliases": map[string][]string{"overlay": {"web"}},
		},
	}
	c.wantAddrs(rt, "[10.5.7.88 fc00:5:0:7::88]")
	if link := c.ip("link", "show", "eth0"); !strings.Contains(link, "02:00:00:00:00:88") {
		t.Errorf("the MAC is not the wanted one: %s", link)
	}
	c.check(rt)
	c.wantMapped(1)
	c.box.Run("ip", "netns", "delete", "c") // the container has died, with its namespace
	c.del(rt)
	c.wantMapped(0)
	c.box.WaitNothingLeft()
}

// TestRuntimeBandwidth limits a container as containerd does for a pod's annotations, and asks for a MAC as a
// capability.
func TestRuntimeBandwidth(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	rt := &libcni.RuntimeConf{
		ContainerID: strings.Repeat("bd", 32), NetNS: "/run/netns/c", IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "n"}, {"K8S_POD_NAME", "web"}},
		CapabilityArgs: map[string]any{
			"mac": "02:00:00:00:00:99",
			"bandwidth": map[string]any{
				"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000,
			},
		},
	}
	shapers := func() int { return strings.Count(c.box.Exec("tc", "qdisc", "show"), "qdisc tbf") }
	c.wantAddrs(rt, "[10.5.7.2 fc00:5:0:7::2]")
	if link := c.ip("link", "show", "eth0"); !strings.Contains(link, "02:00:00:00:00:99") {
		t.Errorf("the MAC is not the wanted one: %s", link)
	}
	if n := shapers(); n != 2 {
		t.Errorf("%d shapers, want one each way", n)
	}
	c.check(rt)
	c.del(rt)
	if n := shapers(); n != 0 {
		t.Errorf("%d shapers are left after DEL", n)
	}
	c.box.WaitNothingLeft()
}
