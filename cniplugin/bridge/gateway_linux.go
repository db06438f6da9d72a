package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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
	if err := a.conf.claim(host, link, a.networks()); err != nil {
		return nil, false, err
	}
	if a.conf.IsGateway {
		if changed, err = a.ensureGateways(host, link, ips); err != nil {
			return nil, false, fmt.Errorf("bridge %s: %w", name, err)
		}
	}
	if changed || !a.conf.IsGateway {
		trySysctl("ipv6/conf/"+name+"/accept_ra", "0")
	}
	if err := SetUp(link.Attrs().Index); err != nil {
		return nil, false, fmt.Errorf("bridge %s: set up: %w", name, err)
	}
	return link, changed, nil
}

// SetUp sets a bridge up, and has it learn no MAC from frames of link-local protocols (LLDP, say): those pass by all that
// could drop them first, so that a container could fill its table, or take another's place there.
func SetUp(index int) error {
	const noLinkLocalLearn = 1 << 0 // BR_BOOLOPT_NO_LL_LEARN; since Linux 5.0, of which older ones know nothing
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	request.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	options := binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, noLinkLocalLearn), noLinkLocalLearn)
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(unix.IFLA_BR_MULTI_BOOLOPT, options)
	request.AddData(info)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// ensureGateways gives the bridge the gateway of each of the addresses.
func (a *Attachment) ensureGateways(host *netlink.Handle, link netlink.Link, ips []*types100.IPConfig) (changed bool, err error) {
	for _, addr := range ips {
		gateway := &net.IPNet{IP: addr.Gateway, Mask: addr.Address.Mask}
		fresh, err := a.ensureGateway(host, link, gateway)
		if err != nil {
			return false, fmt.Errorf("gateway: %s: %w", gateway, err)
		}
		changed = changed || fresh
	}
	return changed, nil
}

// ensureGateway gives the bridge an address. One that it has already is the usual case and costs one message: the host forwards
// then, and to look would take long, since the kernel finds a host's sysctls behind those of all its containers. A new one
// replaces what the bridge had of the network: after another lease for the host the route to the old subnet, which comes with
// the address, would lead astray what is meant for the subnet's next owner.
func (a *Attachment) ensureGateway(host *netlink.Handle, link netlink.Link, gateway *net.IPNet) (changed bool, err error) {
	// Nobody else has the address, and while the kernel looks for them (DAD) it does not answer: the first container
	// would have no gateway for a second or two.
	addr := &netlink.Addr{IPNet: gateway, Flags: unix.IFA_F_NODAD}
	err = host.AddrAdd(link, addr)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	forward := ip.EnableIP6Forward
	if familyOf(gateway.IP) == netlink.FAMILY_V4 {
		forward = ip.EnableIP4Forward
	}
	if err := forward(); err != nil {
		return false, errors.Join(err, host.AddrDel(link, addr))
	}
	all, err := netlinksafe.AddrList(link, familyOf(gateway.IP))
	if err != nil {
		return false, err
	}
	for _, other := range all {
		if other.IPNet.String() == gateway.String() || !a.network(gateway.IP).Contains(other.IP) {
			continue
		}
		if !a.conf.ForceAddress {
			return false, errors.Join(fmt.Errorf("the bridge has %s, and forceAddress is off", other.IPNet), host.AddrDel(link, addr))
		}
		if err := host.AddrDel(link, &other); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return false, err
		}
	}
	return true, nil
}

// networks are the overlay's that the pool is of, whether the container has an address of each or not.
func (a *Attachment) networks() (all []netip.Prefix) {
	for _, set := range a.pool.Ranges {
		n := a.network(set[0].Gateway)
		ip, _ := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		all = append(all, netip.PrefixFrom(ip.Unmap(), ones))
	}
	return all
}

// network is the overlay's that an address is of. The containers have a route to it, and that is the narrowest one that has
// their subnet in it.
func (a *Attachment) network(ip net.IP) *net.IPNet {
	network, narrowest := &net.IPNet{}, -1
	for _, r := range a.pool.Routes {
		if ones, _ := r.Dst.Mask.Size(); r.Dst.Contains(ip) && ones > narrowest {
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
