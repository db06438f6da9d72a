package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ipam"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/ports"
)

// Add attaches the container, and makes the bridge if there is none. One that fails removes the interface that it made, and
// nothing else; the container's addresses are freed by Del.
func (a *Attachment) Add(ctx context.Context) (result *types100.Result, err error) {
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

	if result, err = a.reserve(ctx); err != nil {
		return nil, err
	}
	port, err := a.prepare(result)
	if err != nil {
		return nil, err
	}
	v, err := a.makeVeth(netns, host, port.MAC, func() error { return a.configure(result) })
	defer v.close()
	defer func() {
		if err != nil {
			err = errors.Join(err, v.remove())
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.IfName, err)
	}
	if err := a.plug(ctx, host, v.port, port, result, a.awaitUp); err != nil {
		return nil, err
	}
	if err := v.announce(); err != nil {
		return nil, fmt.Errorf("%s: announce its addresses: %w", a.IfName, err)
	}
	return result, a.hairpin(host, v.port)
}

// prepare completes what is known of the result before the veth is made, and has the addresses wait for their policies: before the
// port is up, since without a bridge it is no port yet, and the host answers for its gateway there, and routes.
func (a *Attachment) prepare(result *types100.Result) (port ports.Port, err error) {
	port = ports.Port{MAC: a.mac, Allowed: a.Allowed}
	if port.MAC == nil {
		port.MAC = macOf(result.IPs[0].Address.IP)
	}
	for _, addr := range result.IPs {
		ip, _ := netip.AddrFromSlice(addr.Address.IP) // of a pool
		port.Addrs = append(port.Addrs, ip.Unmap())
	}
	result.Interfaces = []*types100.Interface{{Name: a.conf.Bridge}, {}, {Name: a.IfName, Mac: port.MAC.String(), Sandbox: a.Netns}}
	if !a.Unheld { // no daemon would ever let it
		a.Waits, err = pending.Add(append(slices.Clone(port.Addrs), ports.LinkLocal(port.MAC)))
	}
	return port, err
}

// plug guards the port, before anything can announce itself there, and puts it into the bridge; ready waits until it forwards.
func (a *Attachment) plug(
	ctx context.Context, host *netlink.Handle, link netlink.Link, port ports.Port, result *types100.Result,
	ready func(context.Context, *netlink.Handle, netlink.Link) error,
) (err error) {
	result.Interfaces[1].Name, result.Interfaces[1].Mac = link.Attrs().Name, link.Attrs().HardwareAddr.String()
	port.Index = link.Attrs().Index
	if err := ports.Add(port); err != nil {
		return err
	}
	result.Interfaces[0].Mac, err = a.join(ctx, host, link, result.IPs, ready)
	return err
}

// hairpin lets what comes from the port go back there. It is the last: from now on the container gets its own announcements back, of
// which the kernel would warn.
func (a *Attachment) hairpin(host *netlink.Handle, port netlink.Link) error {
	if !a.conf.Hairpin {
		return nil
	}
	if err := host.LinkSetHairpin(port, true); err != nil {
		return fmt.Errorf("bridge %s: port %s: hairpinMode: %w", a.conf.Bridge, port.Attrs().Name, err)
	}
	return nil
}

// join puts the port into the bridge, and returns the bridge's MAC.
func (a *Attachment) join(
	ctx context.Context, host *netlink.Handle, port netlink.Link, ips []*types100.IPConfig,
	ready func(context.Context, *netlink.Handle, netlink.Link) error,
) (string, error) {
	bridge, changed, err := a.ensureBridge(host, ips)
	if err != nil {
		return "", err
	}
	if a.Waits {
		if err := pending.Bridge(bridge.Attrs().Index, port.Attrs().Index); err != nil {
			return "", fmt.Errorf("bridge %s: %w", a.conf.Bridge, err)
		}
		for _, ip := range ips { // what was sent to nobody, and let pass, waits for somebody to answer
			_ = host.NeighDel(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, IP: ip.Address.IP}) // there is none, as a rule
		}
	}
	trySysctl("ipv6/conf/"+port.Attrs().Name+"/accept_ra", "0")
	err = host.LinkSetMaster(port, bridge)
	if err == nil {
		err = ready(ctx, host, port)
	}
	if err != nil {
		return "", fmt.Errorf("bridge %s: port %s: %w", a.conf.Bridge, port.Attrs().Name, err)
	}
	if changed {
		if err := keepMAC(host, bridge); err != nil {
			return "", fmt.Errorf("bridge %s: MAC: %w", a.conf.Bridge, err)
		}
	}
	if bridge, err = host.LinkByName(a.conf.Bridge); err != nil { // its MAC may be another now
		return "", fmt.Errorf("bridge %s: %w", a.conf.Bridge, err)
	}
	return bridge.Attrs().HardwareAddr.String(), nil
}

// configure configures the container's interface, from the container's namespace. Every multicast frame that it sends costs
// the host as much as the bridge has ports, about 3 µs each: so no router is solicited, of which there is none but the host,
// and where the network has no IPv6 there is no link-local address, whose groups and neighbours would be told of.
func (a *Attachment) configure(result *types100.Result) error {
	for sysctl, value := range map[string]string{
		"ipv6/conf/" + a.IfName + "/accept_dad": "0", // the pool gives no address twice
		"ipv6/conf/" + a.IfName + "/accept_ra":  "0", // whoever is beside it on the bridge is no router
		// The neighbours forget who had the address before.
		"ipv4/conf/" + a.IfName + "/arp_notify":   "1",
		"ipv6/conf/" + a.IfName + "/ndisc_notify": "1",
	} {
		trySysctl(sysctl, value)
	}
	if !slices.ContainsFunc(result.IPs, func(c *types100.IPConfig) bool { return familyOf(c.Address.IP) == netlink.FAMILY_V6 }) {
		trySysctl("ipv6/conf/"+a.IfName+"/addr_gen_mode", "1") // IN6_ADDR_GEN_MODE_NONE
	}
	return ipam.ConfigureIface(a.IfName, result)
}

// awaitUp waits until the bridge forwards what comes from a port.
func (a *Attachment) awaitUp(ctx context.Context, host *netlink.Handle, port netlink.Link) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for pause := time.Millisecond; ; pause *= 2 {
		link, err := host.LinkByIndex(port.Attrs().Index)
		if err != nil {
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
