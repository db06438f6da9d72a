package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// markPrefix is what the alias of a bridge begins with that is a network's; its first range follows.
const markPrefix = "overlay "

// Claim makes the bridge that another plugin is to use, or has just made, the network's with the ranges, as [Attachment.Add] does.
// One that is not there yet is no error.
func Claim(netConf []byte, networks []netip.Prefix) error {
	c := conf{Bridge: defaultBridge}
	if err := json.Unmarshal(netConf, &c); err != nil {
		return types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer host.Close()
	link, err := host.LinkByName(c.Bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", c.Bridge, err)
	}
	return c.claim(host, link, networks)
}

// claim makes the bridge the network's, unless another network uses it, be it of ours or not. Its alias says that none does: to
// look costs as much as the host has addresses.
func (c *conf) claim(host *netlink.Handle, link netlink.Link, networks []netip.Prefix) error {
	mark := markPrefix + networks[0].String()
	if link.Attrs().Alias == mark {
		return nil
	}
	if err := refuseMarked(host, link, networks); err != nil {
		return err
	}
	if c.IsGateway || c.DefaultGateway {
		if err := refuseAddresses(link, networks); err != nil {
			return err
		}
	}
	if err := host.LinkSetAlias(link, mark); err != nil {
		return fmt.Errorf("bridge %s: alias: %w", link.Attrs().Name, err)
	}
	return nil
}

// refuseMarked fails if containers of another network of ours are on the bridge: it has no address of theirs where it is no gateway.
// That a network's range was changed is seen by the bridge having no ports, or the ranges having a part in common.
func refuseMarked(host *netlink.Handle, link netlink.Link, networks []netip.Prefix) error {
	text, ours := strings.CutPrefix(link.Attrs().Alias, markPrefix)
	other, err := netip.ParsePrefix(text)
	if !ours || err != nil || slices.ContainsFunc(networks, other.Overlaps) {
		return nil
	}
	links, err := host.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // it has what was there all the time
		return err
	}
	used := slices.ContainsFunc(links, func(port netlink.Link) bool { return port.Attrs().MasterIndex == link.Attrs().Index })
	if !used {
		return nil
	}
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("bridge %s: containers of the network %s are on it, and a bridge belongs to "+
		`one network. Set "delegate": {"bridge": "overlay1"} in the network configuration, for a bridge of its own`, link.Attrs().Name, other), "")
}

// refuseAddresses fails if the bridge has addresses that are not of the overlay's network: another network uses it then, and its
// containers would lose everything.
func refuseAddresses(link netlink.Link, networks []netip.Prefix) error {
	for _, network := range networks {
		family := netlink.FAMILY_V4
		if network.Addr().Is6() {
			family = netlink.FAMILY_V6
		}
		all, err := netlinksafe.AddrList(link, family)
		if err != nil {
			return err
		}
		for _, other := range all {
			ip, _ := netip.AddrFromSlice(other.IP)
			if other.Scope == unix.RT_SCOPE_UNIVERSE && !network.Contains(ip.Unmap()) {
				return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("bridge %s: it has %s, which is not of the network %s, "+
					`so another network uses it. Set "delegate": {"bridge": "overlay0"} in the network configuration, for a bridge of `+
					"its own; or, if nobody uses that address any more: ip address del %[2]s dev %[1]s", link.Attrs().Name, other.IPNet, network), "")
			}
		}
	}
	return nil
}
