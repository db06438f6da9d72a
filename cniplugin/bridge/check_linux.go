package bridge

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
	"github.com/vishvananda/netlink"
)

// Check says what is no longer as Add left it, according to the result that the configuration holds.
func (a *Attachment) Check(ctx context.Context) error {
	result, err := a.prevResult()
	if err != nil {
		return err
	}
	if err := a.checkReserved(ctx); err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(a.conf.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", a.conf.Bridge, err)
	}
	peer, err := a.checkContainer(result)
	if err != nil {
		return err
	}
	port, err := netlink.LinkByIndex(peer)
	if err != nil {
		return fmt.Errorf("%s: its other end: %w", a.IfName, err)
	}
	if port.Attrs().MasterIndex != bridge.Attrs().Index {
		return fmt.Errorf("%s is not in bridge %s", port.Attrs().Name, a.conf.Bridge)
	}
	return nil
}

func (a *Attachment) prevResult() (*types100.Result, error) {
	if a.conf.PrevResult != nil { // read before
		return types100.NewResultFromResult(a.conf.PrevResult)
	}
	if a.conf.RawPrevResult == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult: missing", "")
	}
	if err := version.ParsePrevResult(&a.conf.NetConf); err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	return types100.NewResultFromResult(a.conf.PrevResult)
}

func (a *Attachment) checkReserved(ctx context.Context) error {
	s, err := openStore(ctx, a.pool.DataDir, a.pool.Name)
	if err != nil {
		return err
	}
	defer s.Close()
	if files, _ := a.own(s); len(files) > 0 {
		return nil
	}
	found, err := s.FindByKey(a.ID + disk.LineBreak + a.IfName)
	if err == nil && !found {
		err = fmt.Errorf("the pool holds no address for container %s", a.ID)
	}
	return err
}

// checkContainer checks the container's end, and returns the index of the other one.
func (a *Attachment) checkContainer(result *types100.Result) (peer int, err error) {
	err = ns.WithNetNSPath(a.Netns, func(ns.NetNS) error {
		link, err := netlink.LinkByName(a.IfName)
		if err != nil {
			return fmt.Errorf("%s: %w", a.IfName, err)
		}
		peer = link.Attrs().ParentIndex
		for _, i := range result.Interfaces {
			if a.isOwn(i) && i.Mac != "" && !strings.EqualFold(i.Mac, link.Attrs().HardwareAddr.String()) {
				return fmt.Errorf("%s: its MAC is %s, and was %s", a.IfName, link.Attrs().HardwareAddr, i.Mac)
			}
		}
		return a.checkAddresses(link, result)
	})
	return peer, err
}

func (a *Attachment) isOwn(i *types100.Interface) bool {
	return i.Sandbox == a.Netns && i.Name == a.IfName
}

// checkAddresses checks the interface's addresses, and the routes in all tables, for a chained sbr moves them to one of the
// interface's.
func (a *Attachment) checkAddresses(link netlink.Link, result *types100.Result) error {
	has, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	gateways := map[int]net.IP{} // by family
	for _, ip := range result.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(result.Interfaces) && !a.isOwn(result.Interfaces[*i]) {
			continue // of a chained plugin
		}
		if !slices.ContainsFunc(has, func(addr netlink.Addr) bool { return addr.IPNet.String() == ip.Address.String() }) {
			return fmt.Errorf("%s has lost its address %s", a.IfName, &ip.Address)
		}
		gateways[familyOf(ip.Address.IP)] = ip.Gateway
	}
	for _, r := range result.Routes {
		filter := &netlink.Route{Dst: &r.Dst, Gw: r.GW}
		if r.GW == nil {
			filter.Gw = gateways[familyOf(r.Dst.IP)]
		}
		found, err := netlinksafe.RouteListFiltered(familyOf(r.Dst.IP), filter,
			netlink.RT_FILTER_DST|netlink.RT_FILTER_GW|netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("routes: %w", err)
		}
		if len(found) == 0 {
			return fmt.Errorf("there is no route to %s via %s", &r.Dst, filter.Gw)
		}
	}
	return nil
}

func familyOf(ip net.IP) int {
	if ip.To4() != nil {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}
