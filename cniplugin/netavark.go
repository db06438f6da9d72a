package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/subnet"
)

// netavarkAPI is the version of netavark's plugin API (plugin-API.md of its sources), the only one there is.
const netavarkAPI = "1.0.0"

// pluginDirs are where the reference plugins are that this one has beside it, or a distribution brings.
var pluginDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

// isNetavark says whether it is netavark that calls, or podman for it: CNI gives no arguments.
func isNetavark(args []string) bool {
	return len(args) > 0 && slices.Contains([]string{"create", "setup", "teardown", "info"}, args[0])
}

// netavark answers podman's netavark. What it asks for is done by the CNI plugins, as a runtime that knows CNI would have them do
// it: a container of podman's is no other than anybody's, to records, policies and to what collects leftovers.
func netavark(args []string, stdin io.Reader, stdout io.Writer) int {
	answer, err := netavarkCommand(args, stdin)
	status := 0
	if err != nil {
		answer, status = map[string]string{"error": strings.ReplaceAll(err.Error(), "\n", "; ")}, 1
	}
	if answer != nil {
		if err := json.NewEncoder(stdout).Encode(answer); err != nil {
			fmt.Fprintln(os.Stderr, "overlay: cannot print the answer:", err)
			return 1
		}
	}
	return status
}

func netavarkCommand(args []string, stdin io.Reader) (answer any, err error) {
	switch command := args[0]; command {
	case "info":
		return map[string]string{"version": strings.TrimPrefix(buildVersion, "v"), "api_version": netavarkAPI}, nil
	case "create":
		return netavarkCreate(stdin)
	default:
		if len(args) < 2 || !filepath.IsAbs(args[1]) {
			return nil, fmt.Errorf("%s: needs the absolute path of a network namespace", command)
		}
		var c netavarkContainer
		if err := json.NewDecoder(stdin).Decode(&c); err != nil {
			return nil, fmt.Errorf("%s: the container: %w", command, err)
		}
		if command == "teardown" {
			return nil, c.teardown(args[1])
		}
		return c.setup(args[1])
	}
}

// netavarkNetwork is podman's configuration of a network, but for what is of no account here.
type netavarkNetwork struct {
	Name      string            `json:"name"`
	Interface string            `json:"network_interface"` // the bridge's name, if it is to have another
	Internal  bool              `json:"internal"`
	Options   map[string]string `json:"options"`
	IPAM      map[string]string `json:"ipam_options"`
	Subnets   []any             `json:"subnets"`
	Routes    []any             `json:"routes"`
	DNS       []string          `json:"network_dns_servers"`
}

// netavarkCreate is asked by podman network create. It refuses what would be without effect, and says which addresses the
// network has, without which podman takes no --ip; they are not podman's to give out.
func netavarkCreate(stdin io.Reader) (any, error) {
	var all map[string]any // what is not known here stays as it is
	var n netavarkNetwork
	data, err := io.ReadAll(stdin)
	if err == nil {
		err = errors.Join(json.Unmarshal(data, &all), json.Unmarshal(data, &n))
	}
	if err != nil {
		return nil, fmt.Errorf("create: the network: %w", err)
	}
	if err := n.validate(); err != nil {
		return nil, err
	}
	lease, err := readLease(attachment.SubnetFile(n.network()))
	if err != nil {
		return nil, err
	}
	var subnets []map[string]any
	for i, s := range lease.Subnets {
		of := map[string]any{"subnet": lease.Networks[min(i, len(lease.Networks)-1)].String()}
		for _, network := range lease.Networks {
			if network.Contains(s.Addr()) {
				of["subnet"] = network.String()
			}
		}
		if !n.Internal {
			of["gateway"] = subnet.Gateway(s).Addr().String()
		}
		subnets = append(subnets, of)
	}
	all["subnets"], all["ipam_options"] = subnets, map[string]string{"driver": "none"}
	all["ipv6_enabled"] = slices.ContainsFunc(lease.Subnets, func(p netip.Prefix) bool { return p.Addr().Is6() })
	all["dns_enabled"] = false // that would be aardvark-dns, which knows nothing of other hosts
	return all, nil
}

// network is the name of the network of ours.
func (n *netavarkNetwork) network() string {
	if name := n.Options["network"]; name != subnet.DefaultNetwork {
		return name
	}
	return ""
}

// validate refuses what podman network create was given and has no meaning here.
func (n *netavarkNetwork) validate() error {
	for option := range n.Options {
		if option != "network" && option != "namespace" {
			return fmt.Errorf("option %q: unknown; there are network, of overlayd's, and namespace, of policies", option)
		}
	}
	if name := n.network(); name != "" {
		if err := subnet.ValidNetworkName(name); err != nil {
			return err
		}
	}
	if name, given := n.Options["namespace"]; given && !identity.ValidNamespace(name) {
		return fmt.Errorf("option namespace: %q is no name of a namespace: up to 63 of a-z, 0-9 and -", name)
	}
	driver := n.IPAM["driver"]
	switch {
	case len(n.Subnets) > 0:
		return errors.New("--subnet, --gateway, --ip-range: the addresses are those of the host's lease; to fix them use overlayctl leases reserve")
	case driver != "" && driver != "host-local" && driver != "none":
		return fmt.Errorf("--ipam-driver %s: the addresses are those of the host's lease", driver)
	case len(n.Routes) > 0:
		return errors.New("--route: containers have a route to the overlay, and the default route")
	case len(n.DNS) > 0:
		return errors.New("--dns: give it to podman run")
	}
	return nil
}

// netavarkContainer is what setup and teardown get.
type netavarkContainer struct {
	ID      string          `json:"container_id"`
	Name    string          `json:"container_name"`
	Ports   []netavarkPort  `json:"port_mappings"`
	Network netavarkNetwork `json:"network"`
	Options struct {
		Interface string   `json:"interface_name"`
		IPs       []string `json:"static_ips"`
		MAC       string   `json:"static_mac"`
	} `json:"network_options"`
}

type netavarkPort struct {
	Container int    `json:"container_port"`
	HostIP    string `json:"host_ip"`
	Host      int    `json:"host_port"`
	Protocol  string `json:"protocol"` // or several, with commas between them
	Range     int    `json:"range"`    // of so many ports; 0 is one
}

func (c *netavarkContainer) setup(netns string) (any, error) {
	list, err := c.configuration()
	if err != nil {
		return nil, err
	}
	ctx, cni, rt := context.Background(), netavarkCNI(), c.runtimeConf(netns)
	if _, kept, err := cni.GetNetworkListCachedConfig(list, rt); err == nil && kept != nil { // podman was ended before it heard of it
		if err := c.teardown(netns); err != nil {
			return nil, fmt.Errorf("set up once already: %w", err)
		}
	}
	answer, err := cni.AddNetworkList(ctx, list, rt)
	var result *types100.Result
	if err == nil {
		result, err = types100.NewResultFromResult(answer)
	}
	if err != nil { // a plugin late in the chain may be what failed, and netavark tears down what was set up only
		if undo := cni.DelNetworkList(ctx, list, rt); undo != nil {
			return nil, fmt.Errorf("%w; and undoing it: %w", err, undo)
		}
		return nil, err
	}
	return c.status(result), nil
}

// teardown goes by what setup has kept, if it has: a network may be made anew under its name while containers are on it.
func (c *netavarkContainer) teardown(netns string) error {
	cni, rt := netavarkCNI(), c.runtimeConf(netns)
	list, err := c.configuration()
	if err != nil {
		return err
	}
	data, kept, err := cni.GetNetworkListCachedConfig(list, rt)
	if err == nil && kept != nil {
		if was, err := libcni.NetworkConfFromBytes(data); err == nil {
			list, rt.CapabilityArgs = was, kept.CapabilityArgs
		}
	}
	return cni.DelNetworkList(context.Background(), list, rt)
}

// netavarkCNI calls this program, and the reference plugins beside it or where a distribution has them.
func netavarkCNI() *libcni.CNIConfig {
	dirs := pluginDirs
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			dirs = append([]string{filepath.Dir(self)}, dirs...)
		}
	}
	return libcni.NewCNIConfig(dirs, nil)
}

func (c *netavarkContainer) runtimeConf(netns string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: c.ID, NetNS: netns, IfName: c.Options.Interface,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"NAME", c.Name}}, CapabilityArgs: map[string]any{},
	}
	if len(c.Options.IPs) > 0 {
		rt.CapabilityArgs["ips"] = c.Options.IPs
	}
	if c.Options.MAC != "" {
		rt.CapabilityArgs["mac"] = c.Options.MAC
	}
	if ports := c.portMappings(); len(ports) > 0 {
		rt.CapabilityArgs["portMappings"] = ports
	}
	return rt
}

// portMappings are as CNI has them: a port of a protocol each. A network that is internal has none.
func (c *netavarkContainer) portMappings() (all []map[string]any) {
	if c.Network.Internal {
		return nil
	}
	for _, p := range c.Ports {
		for protocol := range strings.SplitSeq(cmp.Or(p.Protocol, "tcp"), ",") {
			for i := range max(p.Range, 1) {
				all = append(all, map[string]any{
					"hostPort": p.Host + i, "containerPort": p.Container + i, "protocol": protocol, "hostIP": p.HostIP,
				})
			}
		}
	}
	return all
}

// configuration is the conflist that is installed for CNI, for this network.
func (c *netavarkContainer) configuration() (*libcni.NetworkConfigList, error) {
	delegate := map[string]any{"hairpinMode": true, "isDefaultGateway": !c.Network.Internal}
	if c.Network.Interface != "" {
		delegate["bridge"] = c.Network.Interface
	}
	overlay := map[string]any{
		"type": "overlay", "network": c.Network.network(), "containerd": "", "delegate": delegate,
		"capabilities": map[string]bool{"ips": true, "mac": true},
	}
	if namespace := c.Network.Options["namespace"]; namespace != "" {
		overlay["args"] = map[string]any{"cni": map[string]any{"namespace": namespace}}
	}
	plugins := []any{overlay}
	if len(c.portMappings()) > 0 {
		plugins = append(plugins, map[string]any{
			"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": true, "backend": "nftables",
		})
	}
	conf, err := json.Marshal(map[string]any{"cniVersion": types100.ImplementedSpecVersion, "name": c.Network.Name, "plugins": plugins})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(conf)
}

// status is what podman shows, and writes to the container's resolv.conf.
func (c *netavarkContainer) status(r *types100.Result) any {
	mac, subnets := "", []map[string]any{}
	for _, i := range r.Interfaces {
		if i.Sandbox != "" && i.Name == c.Options.Interface {
			mac = i.Mac
		}
	}
	for _, ip := range r.IPs {
		of := map[string]any{"ipnet": ip.Address.String()}
		if ip.Gateway != nil && !c.Network.Internal {
			of["gateway"] = ip.Gateway.String()
		}
		subnets = append(subnets, of)
	}
	search := slices.Clone(r.DNS.Search)
	if r.DNS.Domain != "" {
		search = append([]string{r.DNS.Domain}, search...)
	}
	return map[string]any{
		"dns_search_domains": search, "dns_server_ips": r.DNS.Nameservers,
		"interfaces": map[string]any{c.Options.Interface: map[string]any{"mac_address": mac, "subnets": subnets}},
	}
}
