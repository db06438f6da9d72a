package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ensureBridge returns the bridge, which is up and has the gateways of the addresses; changed says that it had not before.
func (a *Attachment) ensureBridge(host *netlink.Handle, ips []*types100.IPConfig) (link netlink.Link, changed bool, err error) {
	name := a.conf.Bridge
	link, err = host.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, a.conf.MTU
		if err := host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, false, fmt.Errorf("bridge %s: %w", name, err)
		}
		link, err = host.LinkByName(name)
	}
	if err != nil {
		return nil, false, fmt.Errorf("bridge %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return nil, false, fmt.Errorf("bridge %s: there is a link of this name which is no bridge, but of type %s", name, link.Type())
	}
	if a.conf.IsGateway {
		if changed, err = a.ensureGateways(host, link, ips); err != nil {
			return nil, false, fmt.Errorf("bridge %s: gateway: %w", name, err)
		}
	}
	trySysctl("ipv6/conf/"+name+"/accept_ra", "0")
	if err := host.LinkSetUp(link); err != nil {
		return nil, false, fmt.Errorf("bridge %s: set up: %w", name, err)
	}
	return link, changed, nil
}

// ensureGateways gives the bridge the gateway of each of the addresses. Those that it has already are the usual case and
// cost one message each. A new one replaces what the bridge had of this network in that family: after another lease for
// the host the route to the old subnet, which comes with the address, would lead astray what is meant for the subnet's
// next owner. Should anything be in the way, the bridge is left as it was.
func (a *Attachment) ensureGateways(host *netlink.Handle, link netlink.Link, ips []*types100.IPConfig) (changed bool, err error) {
	var fresh, old []netlink.Addr
	defer func() {
		for i := range fresh {
			if err != nil {
				err = errors.Join(err, host.AddrDel(link, &fresh[i]))
			}
		}
	}()
	for _, addr := range ips {
		gateway := &net.IPNet{IP: addr.Gateway, Mask: addr.Address.Mask}
		// Nobody else has the address, and while the kernel looks for them (DAD) it does not answer: the first container
		// would have no gateway for a second or two.
		nlAddr := netlink.Addr{IPNet: gateway, Flags: unix.IFA_F_NODAD}
		err := host.AddrAdd(link, &nlAddr)
		if err == nil {
			fresh = append(fresh, nlAddr)
			var others []netlink.Addr
			others, err = a.replaced(link, gateway)
			old = append(old, others...)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return false, fmt.Errorf("%s: %w", gateway, err)
		}
	}
	for _, addr := range ips {
		forward := ip.EnableIP6Forward
		if addr.Gateway.To4() != nil {
			forward = ip.EnableIP4Forward
		}
		if err := forward(); err != nil {
			return false, err
		}
	}
	for i := range old {
		if err := host.AddrDel(link, &old[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return false, err
		}
	}
	return len(fresh) > 0, nil
}

// replaced lists the addresses whose place on the bridge the gateway takes. One that is not of the overlay's network is that
// of another network, which may use the bridge: its containers would lose everything.
func (a *Attachment) replaced(link netlink.Link, gateway *net.IPNet) ([]netlink.Addr, error) {
	all, err := netlinksafe.AddrList(link, familyOf(gateway.IP))
	if err != nil {
		return nil, err
	}
	var old []netlink.Addr
	network := a.network(gateway)
	for _, other := range all {
		if other.Scope != unix.RT_SCOPE_UNIVERSE || other.IPNet.String() == gateway.String() {
			continue
		}
		if !a.conf.ForceAddress {
			return nil, fmt.Errorf("the bridge has %s, and forceAddress is off", other.IPNet)
		}
		if !network.Contains(other.IP) {
			return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("bridge %s: it has %s, which is not of the network %s, "+
				`so another network uses it. Set "delegate": {"bridge": "overlay0"} in the network configuration, for a bridge of its own; `+
				"or, if nobody uses that address any more: ip address del %[2]s dev %[1]s", a.conf.Bridge, other.IPNet, network), "")
		}
		old = append(old, other)
	}
	return old, nil
}

// network is the overlay's whose subnet the gateway is of. The containers have a route to it, and that is the narrowest one
// that has their subnet in it.
func (a *Attachment) network(subnet *net.IPNet) *net.IPNet {
	network, narrowest := subnet, -1
	for _, r := range a.pool.Routes {
		if ones, _ := r.Dst.Mask.Size(); r.Dst.Contains(subnet.IP) && ones > narrowest {
			network, narrowest = &r.Dst, ones
		}
	}
	return network
}

// keepMAC sets the MAC that the bridge was made with. Once set it stays; until then it is the lowest among the ports',
// changes when they come and go, and is zero when there is none left: then it is the present one.
func keepMAC(host *netlink.Handle, link netlink.Link) (err error) {
	mac := link.Attrs().HardwareAddr
	if bytes.Count(mac, []byte{0}) == len(mac) {
		if link, err = host.LinkByIndex(link.Attrs().Index); err != nil {
			return err
		}
		mac = link.Attrs().HardwareAddr
	}
	return host.LinkSetHardwareAddr(link, mac)
}
