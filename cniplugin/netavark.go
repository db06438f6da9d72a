package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
	lease, err := attachment.ReadLease(attachment.SubnetFile(n.network()))
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
