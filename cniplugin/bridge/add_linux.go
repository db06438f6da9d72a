package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
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
	mac := a.mac
	if mac == nil {
		mac = macOf(result.IPs[0].Address.IP)
	}
	port, inside := &types100.Interface{}, &types100.Interface{Name: a.IfName, Mac: mac.String(), Sandbox: a.Netns}
	result.Interfaces = []*types100.Interface{{Name: a.conf.Bridge}, port, inside}
	if !a.Unheld { // no daemon would ever let it
		// Before the port is up: without a bridge it is no port yet, and the host answers for its gateway there, and routes.
		if a.Waits, err = pending.Add(append(addrsOf(result.IPs), ports.LinkLocal(mac))); err != nil {
			return nil, err
		}
	}
	v, err := a.makeVeth(netns, host, mac, func() error { return a.configure(result) })
	defer v.close()
	defer func() {
		if err != nil {
			err = errors.Join(err, v.remove())
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.IfName, err)
	}
	port.Name, port.Mac = v.pair.PeerName, v.port.Attrs().HardwareAddr.String()
	guarded := a.guarded(v.port, mac, result.IPs)
	if err := ports.Add(guarded); err != nil { // before it announces itself
		return nil, err
	}
	if result.Interfaces[0].Mac, err = a.join(ctx, host, v.port, result.IPs); err != nil {
		return nil, err
	}
	if err := v.announce(); err != nil {
		return nil, fmt.Errorf("%s: announce its addresses: %w", a.IfName, err)
	}
	if a.conf.Hairpin { // from now on the container gets its own announcements back, of which the kernel would warn
		if err := host.LinkSetHairpin(v.port, true); err != nil {
			return nil, fmt.Errorf("bridge %s: port %s: hairpinMode: %w", a.conf.Bridge, port.Name, err)
		}
	}
	return result, nil
}

// guarded is the port as the guard is to know it.
func (a *Attachment) guarded(port netlink.Link, mac net.HardwareAddr, ips []*types100.IPConfig) ports.Port {
	return ports.Port{Index: port.Attrs().Index, MAC: mac, Addrs: addrsOf(ips), Allowed: a.Allowed}
}

func addrsOf(ips []*types100.IPConfig) (addrs []netip.Addr) {
	for _, addr := range ips {
		ip, _ := netip.AddrFromSlice(addr.Address.IP) // of a pool
		addrs = append(addrs, ip.Unmap())
	}
	return addrs
}

// join puts the port into the bridge, and returns the bridge's MAC.
func (a *Attachment) join(ctx context.Context, host *netlink.Handle, port netlink.Link, ips []*types100.IPConfig) (string, error) {
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
	if err := a.plug(ctx, host, bridge, port); err != nil {
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

// plug puts the host's end into the bridge, and waits until the bridge forwards what comes from it.
func (a *Attachment) plug(ctx context.Context, host *netlink.Handle, bridge netlink.Link, port netlink.Link) error {
	trySysctl("ipv6/conf/"+port.Attrs().Name+"/accept_ra", "0")
	if err := host.LinkSetMaster(port, bridge); err != nil {
		return err
	}
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
