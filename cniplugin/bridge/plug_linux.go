package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pluggable is an attachment for a runtime that gets the addresses itself, by [Attachment.Reserve], and moves the interface into
// the container, which may not be there yet. Its links have names that follow from the container's id.
type Pluggable struct {
	*Attachment
	MAC net.HardwareAddr // of the container's interface, [MACOf] one of its addresses as a rule
}

// MACOf derives a container's MAC from its address, so that no neighbour ever has another one for it.
func MACOf(addr netip.Addr) net.HardwareAddr { return macOf(addr.AsSlice()) }

// Names are the container's interface, as long as it is on the host, and the port, which leads to it wherever it is.
func (p Pluggable) Names() (inside, port string) {
	port = p.prefix() + p.ID[:min(len(p.ID), 8)]
	return port + "c", port
}

// Plug makes both, afresh, and puts the port into the bridge, which is made if there is none. The interface is down and has no
// address. If it fails, nothing of that is left; the addresses stay reserved.
func (p Pluggable) Plug(ctx context.Context, addrs []netip.Prefix) (result *types100.Result, err error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	result, err = p.resultOf(addrs)
	if err != nil {
		return nil, err
	}
	p.mac = p.MAC
	port, err := p.prepare(result)
	if err != nil {
		return nil, err
	}
	if err := p.Unplug(); err != nil {
		return nil, err
	}
	link, err := p.makePair(host)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Unplug())
		}
	}()
	if err != nil {
		return nil, err
	}
	at := func(context.Context, *netlink.Handle, netlink.Link) error { return nil } // once the interface is up
	if err := p.plug(ctx, host, link, port, result, at); err != nil {
		return nil, err
	}
	for _, addr := range addrs { // one who had the address before may have had another MAC
		_ = host.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().MasterIndex, IP: addr.Addr().AsSlice()})
	}
	return result, p.hairpin(host, link)
}

// resultOf is what [Attachment.Add] would say of addresses that are reserved, without interfaces.
func (p Pluggable) resultOf(addrs []netip.Prefix) (*types100.Result, error) {
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: p.pool.Routes}
	for _, addr := range addrs {
		var in *allocator.Range
		for _, set := range p.pool.Ranges {
			if r, err := set.RangeFor(addr.Addr().AsSlice()); err == nil {
				in = r
			}
		}
		if in == nil {
			return nil, fmt.Errorf("%s is not of this host's subnet any more: the lease has changed", addr.Addr())
		}
		result.IPs = append(result.IPs, &types100.IPConfig{
			Interface: types100.Int(2), Gateway: in.Gateway,
			Address: net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())},
		})
	}
	if len(result.IPs) == 0 {
		return nil, errors.New("it has no address")
	}
	return result, nil
}

// makePair makes the interface and the port, which is up, and returns the port.
func (p Pluggable) makePair(host *netlink.Handle) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	inside, port := p.Names()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = inside, p.conf.MTU, p.MAC
	if err := host.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: port}); err != nil {
		return nil, fmt.Errorf("%s: %w", port, err)
	}
	link, err := host.LinkByName(port)
	if err == nil {
		err = errors.Join(host.LinkSetAlias(link, p.alias()), host.LinkSetUp(link))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", port, err)
	}
	return link, nil
}

// Unplug removes the port, and with it the interface wherever it is; that it is gone already, or another container's has its name,
// is no error.
func (p Pluggable) Unplug() error {
	_, port := p.Names()
	link, err := netlink.LinkByName(port)
	if err == nil {
		// Of whichever lease; one without was killed before it had one.
		if alias := link.Attrs().Alias; alias != "" && !strings.HasPrefix(alias, fmt.Sprintf("overlay %s %s ", p.ID, p.IfName)) {
			return nil
		}
		err = netlink.LinkDel(link)
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", port, err)
	}
	return nil
}
