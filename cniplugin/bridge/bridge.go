// Package bridge attaches containers to a Linux bridge with addresses of a local pool, in the process that calls it.
// It is what the reference plugins bridge and host-local do for a configuration without the rarer of their options,
// and leaves the same on the host, in the container and on disk, so that either can check and undo what the other
// has done. Not starting those two saves a third of the time of an ADD.
//
// It is below cniplugin, beside which nobody needs it, and knows nothing of leases: it gets the configuration that
// the plugins would get.
package bridge

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
)

// defaultBridge is the one that the reference plugin takes where it is told of none.
const defaultBridge = "cni0"

// conf is the part of the bridge plugin's configuration that is understood here.
type conf struct {
	types.NetConf
	Bridge         string `json:"bridge"`
	IsGateway      bool   `json:"isGateway"`
	DefaultGateway bool   `json:"isDefaultGateway"`
	ForceAddress   bool   `json:"forceAddress"`
	Hairpin        bool   `json:"hairpinMode"`
	MTU            int    `json:"mtu"`

	Args struct {
		CNI withMAC `json:"cni"`
	} `json:"args"`
	RuntimeConfig withMAC `json:"runtimeConfig"`
}

type withMAC struct {
	MAC string `json:"mac"`
}

// Supports says whether a configuration, as it is decoded from JSON, has nothing in it but what is understood here.
func Supports(netConf map[string]any) bool {
	ipam, _ := netConf["ipam"].(map[string]any)
	return netConf["type"] == "bridge" && ipam["type"] == "host-local" &&
		netConf["ipMasq"] == false &&
		onlyKeys(ipam, "type", "ranges", "routes", "dataDir") &&
		onlyKeys(netConf, "cniVersion", "name", "type", "ipam", "ipMasq", "args", "dns", "runtimeConfig", "prevResult",
			"bridge", "isGateway", "isDefaultGateway", "forceAddress", "hairpinMode", "mtu")
}

func onlyKeys(m map[string]any, known ...string) bool {
	for key := range m {
		if !slices.Contains(known, key) {
			return false
		}
	}
	return true
}

// Container is the container's end of an attachment.
type Container struct {
	ID, IfName string
	Netns      string // the path of its network namespace; empty: it is gone
	Args       string // CNI_ARGS
	Again      bool   // it has been attached before, and keeps the addresses that the pool still holds for it
	// Allowed are what it may send from besides its own addresses.
	Allowed []netip.Prefix
	// Unheld says that nobody brings its guard back should somebody remove it.
	Unheld bool
}

// Attachment is a container's interface on the bridge, as it should be.
type Attachment struct {
	Container
	conf conf
	pool *allocator.IPAMConfig
	mac  net.HardwareAddr // of the container's interface; nil: the one of its address

	// Waits says after Add that the container may do nothing before its policies are in force.
	Waits bool
}

// New reads the configuration of an attachment, one that is supported.
func New(netConf []byte, container Container) (*Attachment, error) {
	container.Args = Loadable(container.Args)
	a := &Attachment{Container: container, conf: conf{Bridge: defaultBridge}}
	if err := json.Unmarshal(netConf, &a.conf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	a.conf.IsGateway = a.conf.IsGateway || a.conf.DefaultGateway
	var err error
	if a.mac, err = a.conf.wantedMAC(container.Args); err != nil {
		return nil, err
	}
	if a.pool, _, err = allocator.LoadIPAMConfig(netConf, container.Args); err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("ipam: %v", err), "")
	}
	return a, nil
}

// Loadable is what of CNI_ARGS concerns a bridge, and CNI's own library understands: pairs with one "=" each. For another, such as
// a Nomad job whose id has one, it refuses the whole, and so it does for what it does not know: what the container is to policies.
func Loadable(args string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(args, ";"), func(pair string) bool {
		name, value, ok := strings.Cut(pair, "=")
		return !ok || strings.Contains(value, "=") || slices.Contains([]string{"NAMESPACE", "NAME", "LABELS", "PORTS"}, name)
	}), ";")
}

// wantedMAC is the address that the runtime asks for; its own word is the last.
func (c *conf) wantedMAC(args string) (net.HardwareAddr, error) {
	var env struct {
		types.CommonArgs
		MAC types.UnmarshallableString
	}
	if err := types.LoadArgs(args, &env); err != nil {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: %v", err), "")
	}
	wanted := cmp.Or(c.RuntimeConfig.MAC, c.Args.CNI.MAC, string(env.MAC))
	if wanted == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(wanted)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("mac: %v", err), "")
	}
	return mac, nil
}

// Asked says which addresses and which MAC an ADD with the configuration and args (CNI_ARGS) asks for; none if mac is nil.
// So do host-local and bridge understand it.
func Asked(netConf []byte, args string) (ips []net.IP, mac net.HardwareAddr, err error) {
	a, err := New(netConf, Container{Args: args})
	if err != nil {
		return nil, nil, err
	}
	return a.pool.IPArgs, a.mac, nil
}
