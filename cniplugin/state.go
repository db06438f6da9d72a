package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
)

// stateVersion is that of the attachment files.
const stateVersion = 1

// key names an attachment, as CNI does: one container may be on one network with several interfaces.
type key struct {
	network, containerID, ifName string
}

// validate applies CNI's rules for names. The runtime's library and the skeleton do so too, but not for every
// command, and here the names become a path (CVE-2021-20206).
func (k key) validate() error {
	// The errors are a concrete type; returned as they come, a nil would become an error.
	if err := utils.ValidateNetworkName(k.network); err != nil {
		return err
	}
	if err := utils.ValidateContainerID(k.containerID); err != nil {
		return err
	}
	if err := utils.ValidateInterfaceName(k.ifName); err != nil {
		return err
	}
	if strings.ContainsRune(k.ifName, 0) {
		return failf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: must not contain a zero byte")
	}
	return nil
}

// fileName is unique: neither an id nor an interface name has a colon in it.
func (k key) fileName() string {
	return k.containerID + ":" + k.ifName + ".json"
}

// parseFileName is the reverse of fileName; ok is false for a file that is not an attachment's.
func parseFileName(network, name string) (k key, ok bool) {
	base, isJSON := strings.CutSuffix(name, ".json")
	id, ifName, hasColon := strings.Cut(base, ":")
	k = key{network, id, ifName}
	return k, isJSON && hasColon && k.validate() == nil
}

// attachment is what is remembered of a container's interface. The file is read by operators and by other programs
// of ours too, so a change of meaning needs a new version.
type attachment struct {
	Version     int               `json:"version"`
	Network     string            `json:"network"`
	ContainerID string            `json:"containerID"`
	IfName      string            `json:"ifName"`
	Netns       string            `json:"netns"`            // its path when it was attached
	NetnsID     string            `json:"netnsID"`          // which namespace the path led to, see netnsID
	Args        string            `json:"args"`             // CNI_ARGS; Nomad gives none at DEL
	Labels      map[string]string `json:"labels,omitempty"` // those of Args that say whose container it is
	Subnets     []netip.Prefix    `json:"subnets"`          // of the host's lease
	Created     time.Time         `json:"created"`
	Delegate    json.RawMessage   `json:"delegate"` // the configuration that the delegate was run with
}

func (a attachment) key() key {
	return key{a.Network, a.ContainerID, a.IfName}
}

// decodeAttachment decodes and validates the file of the attachment k.
func decodeAttachment(data []byte, k key) (attachment, error) {
	var a attachment
	if err := json.Unmarshal(data, &a); err != nil {
		return attachment{}, err
	}
	if a.Version != stateVersion {
		return attachment{}, fmt.Errorf("version: %d is not %d, the one this plugin knows", a.Version, stateVersion)
	}
	if a.key() != k {
		return attachment{}, fmt.Errorf("it is of %v, not of %v", a.key(), k)
	}
	var delegate map[string]any
	if err := json.Unmarshal(a.Delegate, &delegate); err != nil {
		return attachment{}, fmt.Errorf("delegate: %w", err)
	}
	if _, err := pluginType(delegate, ""); err != nil || delegate["type"] == nil {
		return attachment{}, fmt.Errorf("delegate.type: %v is no plugin", delegate["type"])
	}
	return a, nil
}

// labels picks from CNI_ARGS ("K=V;K2=V2") what Kubernetes' CRI, Nomad and nerdctl say about the container.
func labels(args string) map[string]string {
	found := map[string]string{}
	for pair := range strings.SplitSeq(args, ";") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			continue
		}
		for _, prefix := range []string{"K8S_", "NOMAD_", "NERDCTL_"} {
			if strings.HasPrefix(name, prefix) {
				found[name] = value
			}
		}
	}
	return found
}
