package attachment

import (
	"encoding/json"
	"slices"
)

// UnseenPlugins give a container a way to a LAN which the host's netfilter does not see: no policy holds there, and no guard.
var UnseenPlugins = []string{"macvlan", "ipvlan", "host-device", "vlan", "sriov"}

// Unseen says by what the container is attached, if no policy holds for what it sends by it: one of UnseenPlugins, or a trunk of a
// bridge. br_netfilter passes over frames with a tag (net.bridge.bridge-nf-filter-vlan-tagged is 0); those of a port with one VLAN
// have none where it looks.
func (a Attachment) Unseen() string {
	var c struct {
		Type      string `json:"type"`
		VLANTrunk []any  `json:"vlanTrunk"`
	}
	_ = json.Unmarshal(a.Delegate, &c) // the plugin has rendered it
	switch {
	case slices.Contains(UnseenPlugins, c.Type):
		return c.Type
	case c.Type == "bridge" && len(c.VLANTrunk) > 0:
		return "a bridge's trunk"
	}
	return ""
}
