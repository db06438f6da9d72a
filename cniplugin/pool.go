package main

import (
	"cmp"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
)

// hostLocal is the address management whose pools are ours to look into. A pool has the name of the configuration that it
// is given; what is rendered has the lease's, so that networks that share a lease share its addresses.
const hostLocal = "host-local"

// poolDir is where the pools are that a configuration names; ok is false if its addresses are not host-local's.
func poolDir(conf json.RawMessage) (dir string, ok bool) {
	var c struct {
		IPAM struct{ Type, DataDir string } `json:"ipam"`
	}
	_ = json.Unmarshal(conf, &c) // a mistake in it is told elsewhere
	return cmp.Or(c.IPAM.DataDir, bridge.DefaultPools), cmp.Or(c.IPAM.Type, hostLocal) == hostLocal
}

// poolsOf are those in dir that containers of the network may have addresses of: of leases, and of the network, which
// had one before leases had theirs.
func poolsOf(dir, network string) []string {
	return slices.DeleteFunc(bridge.Pools(dir), func(name string) bool {
		return name != network && !strings.HasPrefix(name, attachment.PoolPrefix)
	})
}

// settle moves what older plugins have reserved under the network's name into the pool of the attachment's lease.
func settle(ctx context.Context, a attachment.Attachment) error {
	dir, ok := poolDir(a.Delegate)
	if !ok {
		return nil
	}
	return bridge.Move(ctx, dir, a.Network, attachment.PoolName(a.Subnets), a.Subnets)
}

// upgrade makes an attachment of version 1 one whose address is in the pool of its lease.
func upgrade(ctx context.Context, a attachment.Attachment) (attachment.Attachment, error) {
	if a.Version == attachment.Version {
		return a, nil
	}
	a.Version = attachment.Version
	if _, ok := poolDir(a.Delegate); !ok || len(a.Subnets) == 0 {
		return a, nil
	}
	var err error
	if a.Delegate, err = with(a.Delegate, map[string]any{"name": attachment.PoolName(a.Subnets)}); err != nil {
		return a, err
	}
	return a, settle(ctx, a)
}

// detachLost detaches a container of which there is no record: what is left tells is who has which address. Its interface
// is removed only if it has one of them, since it may be another's.
func (p *plugin) detachLost(ctx context.Context, conf attachmentConf, args *skel.CmdArgs) error {
	dir, ok := poolDir(args.StdinData)
	pools := poolsOf(dir, conf.Name)
	held, err := bridge.Held(dir, pools, args.ContainerID, args.IfName)
	if !ok || err != nil || len(held) == 0 || conf.OnlyNetns != "" {
		return err
	}
	if _, err := p.containerNetns(args.Netns); err == nil {
		if err := removeLinkWith(args.Netns, args.IfName, held); err != nil {
			return err
		}
	}
	return bridge.Release(ctx, dir, pools, args.ContainerID, args.IfName)
}

// removeLinkWith removes an interface that has one of the addresses.
func removeLinkWith(netns, name string, addresses []netip.Addr) error {
	return ns.WithNetNSPath(netns, func(ns.NetNS) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return nil
		}
		all, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range all {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && slices.Contains(addresses, ip.Unmap()) {
				return netlink.LinkDel(link)
			}
		}
		return nil
	})
}
