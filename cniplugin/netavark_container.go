package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

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
