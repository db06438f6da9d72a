package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/pkg/ipam"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Add attaches the container, and makes the bridge if there is none. What is left of an Add that failed, Del removes.
func (a *Attachment) Add(ctx context.Context) (*types100.Result, error) {
	netns, err := ns.GetNS(a.Netns)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS: %v", err), "")
	}
	defer netns.Close()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer host.Close()

	result, err := a.reserve(ctx)
	if err != nil {
		return nil, err
	}
	bridge, err := a.ensureBridge(host)
	if err != nil {
		return nil, err
	}
	result.Interfaces = []*types100.Interface{{Name: a.conf.Bridge}, {}, {Name: a.IfName, Sandbox: a.Netns}}
	if err := netns.Do(func(hostNS ns.NetNS) error { return a.configure(result, hostNS) }); err != nil {
		return nil, fmt.Errorf("%s: %w", a.IfName, err)
	}
	port := result.Interfaces[1]
	if err := a.plug(ctx, host, bridge, port); err != nil {
		return nil, fmt.Errorf("bridge %s: port %s: %w", a.conf.Bridge, port.Name, err)
	}
	if err := a.ensureGateways(host, bridge, result.IPs); err != nil {
		return nil, fmt.Errorf("bridge %s: gateway: %w", a.conf.Bridge, err)
	}
	if bridge, err = host.LinkByName(a.conf.Bridge); err != nil { // its MAC may be another now
		return nil, fmt.Errorf("bridge %s: %w", a.conf.Bridge, err)
	}
	result.Interfaces[0].Mac = bridge.Attrs().HardwareAddr.String()
	return result, nil
}

// ensureBridge returns the bridge, which is up.
func (a *Attachment) ensureBridge(host *netlink.Handle) (netlink.Link, error) {
	name := a.conf.Bridge
	link, err := host.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, a.conf.MTU
		if err := host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("bridge %s: %w", name, err)
		}
		link, err = host.LinkByName(name)
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("bridge %s: there is a link of this name which is no bridge, but of type %s", name, link.Type())
	}
	trySysctl("ipv6/conf/"+name+"/accept_ra", "0")
	if err := host.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bridge %s: set up: %w", name, err)
	}
	return link, nil
}

// ensureGateways gives the bridge the gateway of each of the addresses.
func (a *Attachment) ensureGateways(host *netlink.Handle, link netlink.Link, ips []*types100.IPConfig) error {
	if !a.conf.IsGateway {
		return nil
	}
	for _, addr := range ips {
		gateway := &net.IPNet{IP: addr.Gateway, Mask: addr.Address.Mask}
		if err := a.ensureGateway(host, link, gateway); err != nil {
			return fmt.Errorf("%s: %w", gateway, err)
		}
	}
	return nil
}

// ensureGateway gives the bridge an address. One that it has already is the usual case and costs one message. A new
// one replaces what the bridge had in that family: after another lease for the host the route to the old subnet,
// which comes with the address, would lead astray what is meant for the subnet's next owner.
func (a *Attachment) ensureGateway(host *netlink.Handle, link netlink.Link, gateway *net.IPNet) error {
	family, forward := unix.AF_INET6, ip.EnableIP6Forward
	if gateway.IP.To4() != nil {
		family, forward = unix.AF_INET, ip.EnableIP4Forward
	}
	if err := forward(); err != nil {
		return err
	}
	// Nobody else has the address, and while the kernel looks for them (DAD) it does not answer: the first container
	// would have no gateway for a second or two.
	addr := &netlink.Addr{IPNet: gateway, Flags: unix.IFA_F_NODAD}
	err := host.AddrAdd(link, addr)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := addresses(host, link, family)
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.Scope != unix.RT_SCOPE_UNIVERSE || other.IPNet.String() == gateway.String() {
			continue
		}
		if !a.conf.ForceAddress {
			return errors.Join(fmt.Errorf("the bridge has %s, and forceAddress is off", other.IPNet), host.AddrDel(link, addr))
		}
		if err := host.AddrDel(link, &other); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
	}
	// The MAC that the bridge was made with. Once set it stays; until then it is the lowest among the ports', changes
	// when they come and go, and is zero when there is none left: then it is the present one.
	mac := link.Attrs().HardwareAddr
	if bytes.Count(mac, []byte{0}) == len(mac) {
		if link, err = host.LinkByIndex(link.Attrs().Index); err != nil {
			return err
		}
		mac = link.Attrs().HardwareAddr
	}
	return host.LinkSetHardwareAddr(link, mac)
}

// addresses lists a link's addresses. The kernel interrupts the list when another plugin changes it.
func addresses(host *netlink.Handle, link netlink.Link, family int) ([]netlink.Addr, error) {
	for range 9 {
		if all, err := host.AddrList(link, family); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return host.AddrList(link, family)
}

// configure makes the container's interface, in the container's namespace, with its other end in the host's.
func (a *Attachment) configure(result *types100.Result, host ns.NetNS) error {
	port, inside, err := ip.SetupVeth(a.IfName, a.conf.MTU, a.mac, host)
	if err != nil {
		return err
	}
	result.Interfaces[1].Name, result.Interfaces[1].Mac = port.Name, port.HardwareAddr.String()
	result.Interfaces[2].Mac = inside.HardwareAddr.String()
	trySysctl("ipv6/conf/"+a.IfName+"/accept_dad", "0") // the pool gives no address twice
	trySysctl("ipv4/conf/"+a.IfName+"/arp_notify", "1") // neighbours forget who had the address before
	return ipam.ConfigureIface(a.IfName, result)
}

// plug puts the host's end into the bridge, and waits until the bridge forwards what comes from it.
func (a *Attachment) plug(ctx context.Context, host *netlink.Handle, bridge netlink.Link, port *types100.Interface) error {
	link, err := host.LinkByName(port.Name)
	if err != nil {
		return err
	}
	if err := host.LinkSetMaster(link, bridge); err != nil {
		return err
	}
	if err := host.LinkSetHairpin(link, a.conf.Hairpin); err != nil {
		return fmt.Errorf("hairpinMode: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for pause := time.Millisecond; ; pause *= 2 {
		if link, err = host.LinkByName(port.Name); err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it is %v, not up", link.Attrs().OperState)
		case <-time.After(pause):
		}
	}
}

// trySysctl sets a sysctl below net, where there is such a one.
func trySysctl(name, value string) {
	_ = os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}
