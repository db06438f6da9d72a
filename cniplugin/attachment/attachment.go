// Package attachment is what the CNI plugin remembers of the containers that it has attached: one file for each, from
// which a container can be detached when everything else is gone, and from which others of ours read who is there.
//
// It stands below cniplugin, which alone writes the files, and apart from it so that overlayctl can read them.
//
// The conflist is not in the file, since no plugin ever gets it: CNI hands each plugin of a list its own configuration and the
// result of the one before. The caller's library, libcni, keeps the list, the result of the whole chain and the capabilities of
// each ADD in /var/lib/cni/results; from there package dead takes them to undo what the other plugins made.
package attachment

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/overlayd/overlayd/backend/ports"
	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
)

// OnlyNetnsKey is a key that a configuration may have at DEL: the NetnsID of the attachment that is meant. One that was
// made since, for the same container in another namespace, stays. Runtimes do not know it; it is for collecting what
// they have left behind while they go on.
const OnlyNetnsKey = "overlayd/netnsID"

// Version is that of the attachment files. Those of version 1 are read too: they have nothing that was found at ADD.
const Version = 2

// Key names an attachment, as CNI does: one container may be on one network with several interfaces.
type Key struct {
	Network, ContainerID, IfName string
}

// Validate applies CNI's rules for names. The runtime's library and the skeleton do so too, but not for every
// command, and here the names become a path (CVE-2021-20206).
func (k Key) Validate() error {
	// The errors are a concrete type; returned as they come, a nil would become an error.
	if err := utils.ValidateNetworkName(k.Network); err != nil {
		return err
	}
	if err := utils.ValidateContainerID(k.ContainerID); err != nil {
		return err
	}
	if err := utils.ValidateInterfaceName(k.IfName); err != nil {
		return err
	}
	if strings.ContainsRune(k.IfName, 0) {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: must not contain a zero byte", "")
	}
	return nil
}

// fileName is unique: neither an id nor an interface name has a colon in it.
func (k Key) fileName() string {
	return k.ContainerID + ":" + k.IfName + ".json"
}

// parseFileName is the reverse of fileName; ok is false for a file that is not an attachment's.
func parseFileName(network, name string) (k Key, ok bool) {
	base, isJSON := strings.CutSuffix(name, ".json")
	id, ifName, hasColon := strings.Cut(base, ":")
	k = Key{network, id, ifName}
	return k, isJSON && hasColon && k.Validate() == nil
}

// Attachment is what is remembered of a container's interface. The file is read by operators and by other programs
// of ours too, so a change of meaning needs a new version.
type Attachment struct {
	Version     int               `json:"version"`
	Network     string            `json:"network"`
	ContainerID string            `json:"containerID"`
	IfName      string            `json:"ifName"`
	Netns       string            `json:"netns"`            // its path when it was attached
	NetnsID     string            `json:"netnsID"`          // which namespace the path led to, see netnsID
	Args        string            `json:"args"`             // CNI_ARGS; Nomad gives none at DEL
	Caller      string            `json:"caller,omitempty"` // kubernetes (podman too), nomad or nerdctl, if Args tell; docker
	Labels      map[string]string `json:"labels,omitempty"` // those of Args that say whose container it is
	Subnets     []netip.Prefix    `json:"subnets"`          // of the host's lease
	Created     time.Time         `json:"created"`
	Delegate    json.RawMessage   `json:"delegate"` // the configuration that the delegate was run with

	// What the delegate has made; all empty until it is done.
	Addresses   []netip.Prefix  `json:"addresses,omitempty"`
	MAC         string          `json:"mac,omitempty"`        // of the container's interface
	IfIndex     int             `json:"ifIndex,omitempty"`    // of it, in the container; 0 if it is no veth
	HostIfName  string          `json:"hostIfName,omitempty"` // of its other end, if it is a veth
	HostIfIndex int             `json:"hostIfIndex,omitempty"`
	HostMAC     string          `json:"hostMAC,omitempty"`
	Result      json.RawMessage `json:"result,omitempty"` // as the runtime got it, but for what later plugins added

	// What its guard goes by: Bridged, Routed, or empty where it has none; and what it may send from besides Addresses.
	Guard          string         `json:"guard,omitempty"`
	AllowedSources []netip.Prefix `json:"allowedSources,omitempty"`

	// InProcess says that no delegate was run: the plugin itself did what the delegate would have done.
	InProcess bool `json:"inProcess,omitempty"`

	// Endpoint is what the container is to policies, as it was found at ADD and relabelled since; nil: an older plugin did not
	// ask. EndpointNotes say what of it was dropped. Relabelled are the labels that people have changed since (nil: taken away).
	Endpoint      *policy.Identity   `json:"endpoint,omitempty"`
	EndpointNotes []string           `json:"endpointNotes,omitempty"`
	Relabelled    map[string]*string `json:"relabelled,omitempty"`

	// Untracked says that nothing was left of connections of who had the addresses before, once they waited for their policies.
	Untracked bool `json:"untracked,omitempty"`

	// Unfollowed says that the record is where the daemon does not look.
	Unfollowed bool `json:"-"`

	// Networks are the ranges of the lease's network.
	Networks []netip.Prefix `json:"-"`

	// RunDir is where the daemon tells that policies are in force.
	RunDir string `json:"-"`

	// Again says that the container is attached once more and keeps its addresses.
	Again bool `json:"-"`
}

// Bridged is the guard of a port of a bridge, which knows the container's addresses; Routed the one of a link that routes lead
// to, which know them.
const (
	Bridged = "bridged"
	Routed  = "routed"
)

// Port is the host's end as the guard is to know it; ok is false if there is nothing to guard.
func (a Attachment) Port() (p ports.Port, ok bool) {
	p = ports.Port{Index: a.HostIfIndex, Routed: a.Guard == Routed, Allowed: a.AllowedSources}
	for _, addr := range a.Addresses {
		p.Addrs = append(p.Addrs, addr.Addr())
	}
	mac, err := net.ParseMAC(a.MAC)
	p.MAC = mac
	return p, a.HostIfIndex > 0 && (p.Routed || a.Guard == Bridged && err == nil && len(mac) == 6)
}

// LinkLocal is the address that the container has on its bridge besides; invalid: it is not known.
func (a Attachment) LinkLocal() netip.Addr {
	if p, ok := a.Port(); ok && !p.Routed {
		return ports.LinkLocal(p.MAC)
	}
	return netip.Addr{}
}

// PolicyEndpoint is the container as policies know it. It has no address until it is attached.
func (a Attachment) PolicyEndpoint() (e policy.Endpoint) {
	if a.Endpoint != nil {
		e.Identity = *a.Endpoint
	} else {
		e.Identity, _ = identity.Derive(identity.Given{ContainerID: a.ContainerID, Args: a.Args})
	}
	for _, addr := range a.Addresses {
		e.IPs = append(e.IPs, addr.Addr().Unmap())
	}
	return e
}

// Key names the attachment.
func (a Attachment) Key() Key {
	return Key{a.Network, a.ContainerID, a.IfName}
}

// HasAddressIn says whether an address of the container is in one of the subnets.
func (a Attachment) HasAddressIn(subnets []netip.Prefix) bool {
	return slices.ContainsFunc(a.Addresses, func(have netip.Prefix) bool {
		return slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Masked().Contains(have.Addr()) })
	})
}

// decode decodes and validates the file of the attachment k.
func decode(data []byte, k Key) (Attachment, error) {
	var a Attachment
	if err := json.Unmarshal(data, &a); err != nil {
		return Attachment{}, err
	}
	if a.Version < 1 || a.Version > Version {
		return Attachment{}, fmt.Errorf("version: %d is none of 1 to %d, which this plugin knows", a.Version, Version)
	}
	if a.Key() != k {
		return Attachment{}, fmt.Errorf("it is of %v, not of %v", a.Key(), k)
	}
	var delegate map[string]any
	if err := json.Unmarshal(a.Delegate, &delegate); err != nil {
		return Attachment{}, fmt.Errorf("delegate: %w", err)
	}
	if _, err := PluginType(delegate); err != nil {
		return Attachment{}, fmt.Errorf("delegate.%w", err)
	}
	return a, nil
}

// PluginType returns the type of the plugin that conf configures. It names a file in CNI_PATH.
func PluginType(conf map[string]any) (string, error) {
	kind, ok := conf["type"].(string)
	if !ok || kind == "" || kind == "." || kind == ".." || strings.ContainsAny(kind, "/\x00") {
		return "", fmt.Errorf("type: must be the name of a plugin, is %v", conf["type"])
	}
	return kind, nil
}

// Docker is the caller of what overlayd-docker attaches, and DockerNetwork the network, whose name is nobody's else. Such a record is of
// one of Docker's endpoints, whose id stands for the container's, since Docker names that to no driver.
const (
	Docker        = "docker"
	DockerNetwork = "overlayd-docker"
)

// callers are who calls the plugin, by what the names begin with that they give in CNI_ARGS.
var callers = map[string]string{"K8S_": "kubernetes", "NOMAD_": "nomad", "NERDCTL_": "nerdctl"}

// Identity picks from CNI_ARGS ("K=V;K2=V2") who calls, and what Kubernetes' CRI, Nomad, nerdctl, and whoever writes
// NAMESPACE, LABELS or PORTS, say about the container.
func Identity(args string) (caller string, labels map[string]string) {
	labels = map[string]string{}
	for pair := range strings.SplitSeq(args, ";") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			continue
		}
		for prefix, who := range callers {
			if strings.HasPrefix(name, prefix) {
				caller, labels[name] = who, value
			}
		}
		if name == "NAMESPACE" || name == "LABELS" || name == "PORTS" {
			labels[name] = value
		}
	}
	return caller, labels
}

// SubnetFile is what the daemon writes of the network, "" for the one that has no name, unless it is told otherwise.
func SubnetFile(network string) string { return filepath.Join("/run/overlayd", network, "subnet.env") }

// PoolPrefix is what the names of pools of addresses begin with that a lease has.
const PoolPrefix = "overlayd-"

// PoolName names the pool of a lease, whatever the networks are called that take addresses from it. Both families share
// one slot, so that the first subnet is enough; an IPv6 subnet that a network gets later changes nothing.
func PoolName(subnets []netip.Prefix) string {
	if len(subnets) == 0 {
		return ""
	}
	return PoolPrefix + strings.NewReplacer(":", "-", "/", "-").Replace(subnets[0].Masked().String())
}
