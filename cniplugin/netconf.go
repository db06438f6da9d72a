package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/subnet"
)

const defaultDataDir = attachment.DefaultDir

// netConf is the plugin's configuration, the keys of flannel's plugin, as the runtime hands it over.
type netConf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`

	Network    string         `json:"network"`    // of ours; empty or default: the one that has no name
	SubnetFile string         `json:"subnetFile"` // what overlayd writes; absolute; the network's by default
	DataDir    string         `json:"dataDir"`    // one file for each attachment; absolute
	Delegate   map[string]any `json:"delegate"`   // configuration of the delegate; type bridge by default
	IPAM       map[string]any `json:"ipam"`       // its address management; type host-local by default

	// What containers are to policies: where containerd listens, "" not to ask it, and which namespaces of policies stand for
	// its own.
	Containerd string            `json:"containerd"`
	Namespaces map[string]string `json:"namespaces"`

	// Handed on to the delegate as they are, but for the annotations of pods.
	RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	Args          json.RawMessage `json:"args"`
	DNS           json.RawMessage `json:"dns"`

	// What GC must leave alone. CNI 1.1.0 was first published with the second name.
	ValidAttachments    []types.GCAttachment `json:"cni.dev/valid-attachments"`
	OldValidAttachments []types.GCAttachment `json:"cni.dev/attachments"`
}

// attachmentConf is the little that undoing an attachment needs, decoded without a look at the rest: a mistake that
// an operator makes in a configuration must not keep containers from being removed.
type attachmentConf struct {
	CNIVersion   string          `json:"cniVersion"`
	Name         string          `json:"name"`
	DisableCheck bool            `json:"disableCheck"`
	DataDir      string          `json:"dataDir"`
	PrevResult   json.RawMessage `json:"prevResult"`
	OnlyNetns    string          `json:"overlayd/netnsID"` // attachment.OnlyNetnsKey
}

// parseNetConf decodes and validates a configuration. CNI lets a plugin refuse a key that it does not know, and this
// one does, since such a key is a delegate's that stands in the wrong place, or a typing error. So with the keys of bridge
// and host-local, which would pass over it and lose what it sets. Keys with a slash or a dot are let through: they have a
// name space and are added by runtimes ("cni.dev/…").
func parseNetConf(data []byte) (netConf, error) {
	c := netConf{DataDir: defaultDataDir, Containerd: identity.DefaultContainerd}
	if err := decode(data, &c); err != nil {
		return netConf{}, err
	}
	if c.Network == subnet.DefaultNetwork {
		c.Network = ""
	}
	if c.SubnetFile == "" {
		c.SubnetFile = attachment.SubnetFile(c.Network)
	}
	if err := refuseUnknownKeys(data); err != nil {
		return netConf{}, err
	}
	if err := c.validate(); err != nil {
		return netConf{}, err
	}
	return c, nil
}

func parseAttachmentConf(data []byte) (attachmentConf, error) {
	c := attachmentConf{DataDir: defaultDataDir}
	if err := decode(data, &c); err != nil {
		return attachmentConf{}, err
	}
	return c, validatePath("dataDir", c.DataDir)
}

func decode(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber() // a number in the delegate's configuration comes out as it went in
	if err := d.Decode(into); err != nil {
		return failf(types.ErrDecodingFailure, "network configuration: %v", err)
	}
	return nil
}

func refuseUnknownKeys(data []byte) error {
	var given map[string]any
	if err := decode(data, &given); err != nil {
		return err
	}
	known := []string{ // netConf's, and those that CNI has for runtimes
		"args", "capabilities", "cniversion", "containerd", "datadir", "delegate", "disablecheck", "dns", "ipam", "name",
		"namespaces", "network", "prevresult", "runtimeconfig", "subnetfile", "type",
	}
	maps.DeleteFunc(given, func(key string, _ any) bool { return slices.Contains(known, strings.ToLower(key)) })
	return onlyKeys(given, "", `a key of the delegate belongs in "delegate", one of its addresses in "ipam"`)
}

// onlyKeys refuses a key that is not known. One with a slash or a dot has a name space and an owner.
func onlyKeys(conf map[string]any, below, hint string, known ...string) error {
	for _, key := range slices.Sorted(maps.Keys(conf)) {
		if !strings.ContainsAny(key, "/.") && !slices.Contains(known, key) {
			return failf(types.ErrUnsupportedField, `%s%s: unknown key; %s`, below, key, hint)
		}
	}
	return nil
}

func (c *netConf) validate() error {
	if c.Network != "" {
		if err := subnet.ValidNetworkName(c.Network); err != nil {
			return failf(types.ErrInvalidNetworkConfig, "%v", err)
		}
	}
	if err := validatePath("subnetFile", c.SubnetFile); err != nil {
		return err
	}
	if err := validatePath("dataDir", c.DataDir); err != nil {
		return err
	}
	if c.Containerd != "" {
		if err := validatePath("containerd", c.Containerd); err != nil {
			return err
		}
	}
	for of, name := range c.Namespaces {
		if !identity.ValidNamespace(name) {
			return failf(types.ErrInvalidNetworkConfig, "namespaces.%s: %q is no name of a namespace: up to 63 of a-z, 0-9 and -", of, name)
		}
	}
	if err := c.validateDelegate(); err != nil {
		return err
	}
	return c.validateIPAM()
}

func (c *netConf) validateDelegate() error {
	for key, use := range map[string]string{
		"name":       "it is this network's name",
		"cniVersion": "it is this network's cniVersion",
		"ipam":       `write it beside "delegate", not in it`,
	} {
		if _, ok := c.Delegate[key]; ok {
			return failf(types.ErrInvalidNetworkConfig, "delegate.%s: not allowed: %s", key, use)
		}
	}
	kind, err := pluginType(c.Delegate, "bridge")
	if err != nil {
		return failf(types.ErrInvalidNetworkConfig, "delegate.%v", err)
	}
	if kind == c.Type {
		return failf(types.ErrInvalidNetworkConfig, "delegate.type: %q would call itself without end", kind)
	}
	if kind != "bridge" {
		return nil // it knows its keys itself
	}
	known := []string{ // the reference plugin's, and those that CNI lets stand everywhere
		"bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu", "hairpinMode",
		"promiscMode", "vlan", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "enabledad",
		"disableContainerInterface", "portIsolation", "type", "capabilities", "args", "dns", "runtimeConfig",
	}
	return onlyKeys(c.Delegate, "delegate.", "bridge has "+strings.Join(known, ", "), known...)
}

func (c *netConf) validateIPAM() error {
	kind, err := pluginType(c.IPAM, "host-local")
	if err != nil {
		return failf(types.ErrInvalidNetworkConfig, "ipam.%v", err)
	}
	// host-local puts a subnet of its own before ours: containers would get addresses that no peer has a route to.
	own := []string{"subnet", "ranges", "rangeStart", "rangeEnd", "gateway"}
	for _, key := range own {
		if _, ok := c.IPAM[key]; ok && !c.besideLease() {
			return failf(types.ErrInvalidNetworkConfig, "ipam.%s: not allowed: the addresses are those of the "+
				"host's lease; to fix them use overlayctl leases reserve", key)
		}
	}
	if routes, ok := c.IPAM["routes"]; ok {
		if _, isList := routes.([]any); !isList {
			return failf(types.ErrInvalidNetworkConfig, "ipam.routes: must be a list")
		}
	}
	if kind != "host-local" {
		return nil
	}
	known := []string{"type", "routes", "dataDir", "resolvConf"}
	if c.besideLease() {
		known = append(known, own...)
	}
	return onlyKeys(c.IPAM, "ipam.", "host-local has "+strings.Join(known, ", "), known...)
}

// allowedSources are the prefixes that the container may send from besides its own addresses. Not from CNI_ARGS: with Nomad
// whoever writes a job writes those.
func (c *netConf) allowedSources() ([]netip.Prefix, error) {
	var args struct {
		CNI struct {
			AllowedSources []netip.Prefix `json:"allowedSources"`
		} `json:"cni"`
	}
	if len(c.Args) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(c.Args, &args); err != nil {
		return nil, failf(types.ErrInvalidNetworkConfig, "args.cni.allowedSources: must be prefixes: %v", err)
	}
	return args.CNI.AllowedSources, nil
}

// validAttachments returns what a GC must keep.
func (c *netConf) validAttachments() []types.GCAttachment {
	if c.ValidAttachments == nil {
		return c.OldValidAttachments
	}
	return c.ValidAttachments
}

// pluginType returns the type of the plugin that conf configures.
func pluginType(conf map[string]any, preset string) (string, error) {
	if _, given := conf["type"]; !given {
		return preset, nil
	}
	return attachment.PluginType(conf)
}

func validatePath(key, path string) error {
	if !filepath.IsAbs(path) {
		return failf(types.ErrInvalidNetworkConfig, "%s: must be an absolute path, is %q", key, path)
	}
	return nil
}
