package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/ports"
	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/subnet"
)

// unseenConf is what tells which link of the host a container is given, or one on it.
type unseenConf struct {
	Type, Master, Device string
	HWAddr               string `json:"hwaddr"`
	PCI                  string `json:"pciBusID"`
	DeviceID             string `json:"deviceID"`
}

// refuseUnseen refuses an attachment that would be a hole: in policies, where there are any, or in the guard, by which a container
// seems to be no other host: on the link by which the hosts of the overlay reach each other it could.
func refuseUnseen(a attachment.Attachment) error {
	by := a.Unseen()
	if by == "" {
		return nil
	}
	inForce, err := pending.InForce()
	if err != nil {
		return err
	}
	if inForce {
		return failf(types.ErrInvalidNetworkConfig, "delegate: no policy holds for what containers send by %s, and this host has policies: "+
			"attach the container to a bridge without a trunk, or by ptp (overlayctl policy list)", by)
	}
	var c unseenConf
	if json.Unmarshal(a.Delegate, &c) != nil || c.Type == "bridge" || !ports.Guarded(ports.Port{}) {
		return nil
	}
	if link := c.onUnderlay(); link != "" {
		return failf(types.ErrInvalidNetworkConfig, "delegate: by %s on %s, which carries the overlay, a container could seem to be another host: "+
			`take another link, such as a VLAN's, or leave "containers" out of guard in overlayd's configuration`, c.Type, link)
	}
	return nil
}

// onUnderlay names the link of the container if the overlay's packets go by it, or by the device that it is a function of; "" if
// not, or if the link is not there, which the plugin itself says.
func (c *unseenConf) onUnderlay() string {
	carries := underlays()
	for _, name := range c.links() {
		if slices.Contains(carries, name) {
			return name
		}
		physical, _ := filepath.Glob("/sys/class/net/" + name + "/device/physfn/net/*") // SR-IOV's
		for _, of := range physical {
			if slices.Contains(carries, filepath.Base(of)) {
				return name
			}
		}
	}
	return ""
}

// links are those on the host that the configuration means.
func (c *unseenConf) links() []string {
	switch {
	case c.Type != "host-device" && c.Type != "sriov":
		if c.Master == "" { // the plugins take the default route's
			return defaultLinks()
		}
		return []string{c.Master}
	case c.Device != "":
		return []string{c.Device}
	case c.HWAddr != "":
		links, _ := netlinksafe.LinkList()
		for _, link := range links {
			if strings.EqualFold(link.Attrs().HardwareAddr.String(), c.HWAddr) {
				return []string{link.Attrs().Name}
			}
		}
	}
	var names []string
	for _, pci := range []string{c.PCI, c.DeviceID} {
		if pci == "" || strings.ContainsAny(pci, "/\x00") {
			continue
		}
		entries, _ := os.ReadDir("/sys/bus/pci/devices/" + pci + "/net")
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	return names
}

// underlays are the links by which the hosts of the overlay reach each other, as far as the kernel tells: those that vxlan links
// of ours are on, and those of default routes, which overlayd takes unless it is told otherwise.
func underlays() []string {
	names := defaultLinks()
	links, _ := netlinksafe.LinkList()
	for _, link := range links {
		vxlan, ok := link.(*netlink.Vxlan)
		if !ok || !strings.HasPrefix(vxlan.Name, "overlay") && !strings.HasPrefix(vxlan.Name, "flannel") {
			continue
		}
		if on, err := netlink.LinkByIndex(vxlan.VtepDevIndex); err == nil {
			names = append(names, on.Attrs().Name)
		}
	}
	return names
}

func defaultLinks() (names []string) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, _ := netlinksafe.RouteList(nil, family)
		for _, r := range routes {
			if r.Dst != nil {
				if ones, _ := r.Dst.Mask.Size(); ones != 0 {
					continue
				}
			}
			if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				names = append(names, link.Attrs().Name)
			}
		}
	}
	return names
}

// besideLease says whether the addresses are to be of a range that is the LAN's: where the host's netfilter is out of the way, or
// the bridge has VLANs. Everywhere else peers would have no route to them.
func (c *netConf) besideLease() bool {
	_, ranges := c.IPAM["ranges"]
	_, one := c.IPAM["subnet"]
	kind, _ := pluginType(c.Delegate, "bridge")
	vlan := c.Delegate["vlan"] != nil || c.Delegate["vlanTrunk"] != nil
	return (ranges || one) && (slices.Contains(attachment.UnseenPlugins, kind) || kind == "bridge" && vlan)
}

// refuseOverlap refuses a range beside the lease that is not beside it.
func (c *netConf) refuseOverlap(lease subnet.Env) error {
	if !c.besideLease() {
		return nil
	}
	given, err := json.Marshal(c.IPAM)
	var ipam struct {
		Subnet netip.Prefix                      `json:"subnet"`
		Ranges [][]struct{ Subnet netip.Prefix } `json:"ranges"`
	}
	if err == nil {
		err = json.Unmarshal(given, &ipam)
	}
	if err != nil {
		return failf(types.ErrInvalidNetworkConfig, "ipam: %v", err)
	}
	all := []netip.Prefix{ipam.Subnet}
	for _, set := range ipam.Ranges {
		for _, r := range set {
			all = append(all, r.Subnet)
		}
	}
	for _, p := range all {
		for _, network := range lease.Networks {
			if p.IsValid() && p.Overlaps(network) {
				return failf(types.ErrInvalidNetworkConfig, "ipam: %s is of the overlay's %s: leave it out, to have addresses of the host's lease", p, network)
			}
		}
	}
	return nil
}
