package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/ports"
	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
)

// newAttachment is the attachment k as it would be made now, but for NetnsID.
func (p *plugin) newAttachment(conf netConf, k attachment.Key, args *skel.CmdArgs) (attachment.Attachment, error) {
	if err := k.Validate(); err != nil {
		return attachment.Attachment{}, err
	}
	lease, err := attachment.ReadLease(conf.SubnetFile)
	if err != nil {
		return attachment.Attachment{}, err
	}
	rendered, err := conf.render(lease)
	if err != nil {
		return attachment.Attachment{}, err
	}
	allowed, err := conf.allowedSources()
	if err != nil {
		return attachment.Attachment{}, err
	}
	caller, labels := attachment.Identity(args.Args)
	return attachment.Attachment{
		Version: attachment.Version,
		Network: k.Network, ContainerID: k.ContainerID, IfName: k.IfName,
		Netns:    args.Netns,
		Args:     args.Args,
		Caller:   caller,
		Labels:   labels,
		Subnets:  lease.Subnets,
		Created:  p.now().UTC(),
		Delegate: rendered, InProcess: conf.inProcess(rendered), AllowedSources: allowed,
		Networks: lease.Networks, Unfollowed: conf.DataDir != defaultDataDir, RunDir: filepath.Dir(conf.SubnetFile),
	}, nil
}

func keyOf(network string, args *skel.CmdArgs) attachment.Key {
	return attachment.Key{Network: network, ContainerID: args.ContainerID, IfName: args.IfName}
}

// attachmentConf is the part of a configuration that undoing needs.
func (c *netConf) attachmentConf() attachmentConf {
	return attachmentConf{CNIVersion: c.CNIVersion, Name: c.Name, DataDir: c.DataDir}
}

// withResult returns the attachment with what its delegate has made.
func withResult(a attachment.Attachment, result types.Result) (attachment.Attachment, error) {
	r, err := types100.NewResultFromResult(result)
	if err == nil {
		a.Result, err = json.Marshal(result)
	}
	if err != nil {
		return a, failf(types.ErrDecodingFailure, "the delegate's result: %v", err)
	}
	for _, ip := range r.IPs {
		if p, err := netip.ParsePrefix(ip.Address.String()); err == nil {
			a.Addresses = append(a.Addresses, p)
		}
	}
	for _, i := range r.Interfaces {
		if i.Sandbox != "" && i.Name == a.IfName {
			a.MAC = i.Mac
		}
	}
	link, err := hostEnd(r.Interfaces)
	if err != nil || link == nil {
		return a, err
	}
	a.HostIfName = link.Attrs().Name
	a.HostIfIndex, a.HostMAC, a.IfIndex = link.Attrs().Index, link.Attrs().HardwareAddr.String(), link.Attrs().ParentIndex
	a.Guard = guardOf(a)
	return a, nil
}

// hostEnd is the host's end of the container's link, the last of what the delegate has made; nil if it is no veth. That of a VLAN's
// gateway, which the bridge plugin names after it, is a veth too, but has both ends here.
func hostEnd(made []*types100.Interface) (netlink.Link, error) {
	for _, i := range slices.Backward(made) {
		if i.Sandbox != "" {
			continue
		}
		link, err := netlink.LinkByName(i.Name)
		if err == nil && link.Type() == "veth" && link.Attrs().NetNsID >= 0 {
			return link, nil
		}
		if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil, fmt.Errorf("interface %s: %w", i.Name, err)
		}
	}
	return nil, nil
}

// claimBridge refuses the bridge of another network, whose gateway another plugin would take off.
func claimBridge(a attachment.Attachment) error {
	if a.InProcess || delegateType(a) != "bridge" {
		return nil
	}
	return bridge.Claim(a.Delegate, a.Networks)
}

// delegateType is the plugin that attaches.
func delegateType(a attachment.Attachment) string {
	var conf struct{ Type string }
	_ = json.Unmarshal(a.Delegate, &conf) // it was rendered here
	return conf.Type
}

// guardOf says what guards the attachment. Of a trunk nobody knows here what is behind it.
func guardOf(a attachment.Attachment) string {
	var conf struct {
		Type      string `json:"type"`
		VLANTrunk []any  `json:"vlanTrunk"`
	}
	_ = json.Unmarshal(a.Delegate, &conf) // it was rendered here
	switch {
	case conf.Type == "bridge" && len(conf.VLANTrunk) == 0:
		return attachment.Bridged
	case conf.Type == "ptp":
		return attachment.Routed
	}
	return ""
}

// guardDelegated guards what another plugin has attached, as the one in this process does itself.
func guardDelegated(a attachment.Attachment) (waits bool, err error) {
	if err := claimBridge(a); err != nil { // it has made one
		return false, err
	}
	port, ok := a.Port()
	if !ok {
		return false, nil
	}
	if !a.Unfollowed { // no daemon would ever let it
		addrs := slices.Clone(port.Addrs)
		if !port.Routed {
			addrs = append(addrs, ports.LinkLocal(port.MAC))
		}
		if waits, err = pending.Add(addrs); err != nil {
			return false, err
		}
	}
	_ = ns.WithNetNSPath(a.Netns, func(ns.NetNS) error { // not on a kernel without IPv6
		return os.WriteFile("/proc/sys/net/ipv6/conf/"+a.IfName+"/accept_ra", []byte("0"), 0)
	})
	if !port.Routed {
		link, err := netlink.LinkByIndex(port.Index)
		if err == nil {
			err = bridge.SetUp(link.Attrs().MasterIndex)
		}
		if err == nil && waits {
			err = pending.Bridge(link.Attrs().MasterIndex)
		}
		if err != nil {
			return false, fmt.Errorf("guard of %s: %w", a.HostIfName, err)
		}
	}
	return waits, ports.Add(port)
}

// awaitPolicies waits until the policies of the container are in force: the kernel says so, whatever becomes of the daemon.
func awaitPolicies(ctx context.Context, a attachment.Attachment) error {
	inForce, fail, err := pending.WaitTold(ctx, a.RunDir, a.PolicyEndpoint().IPs)
	if err != nil {
		return fmt.Errorf("policies of %s: %w", a.IfName, err)
	}
	if fail && !inForce {
		return failf(types.ErrTryAgainLater, "the policies of the container were not in force in time: is overlayd running? (policy-unready: fail)")
	}
	return nil
}

// checkMAC finds out that a later plugin of the chain gave the container a MAC with which the guard lets it send nothing.
func checkMAC(a attachment.Attachment, prevResult json.RawMessage) error {
	var result struct {
		Interfaces []struct{ Name, Mac, Sandbox string }
	}
	_ = json.Unmarshal(prevResult, &result) // if it is wrong the delegate has said so
	port, ok := a.Port()
	for _, i := range result.Interfaces {
		changed := i.Sandbox != "" && i.Name == a.IfName && i.Mac != "" && !strings.EqualFold(i.Mac, a.MAC)
		if changed && ok && !port.Routed && ports.Guarded(port) {
			return failf(types.ErrInvalidNetworkConfig, "%s: its MAC is %s and the guard knows %s: ask this plugin for the MAC, "+
				`by "capabilities": {"mac": true}, and not one after it (tuning)`, a.IfName, i.Mac, a.MAC)
		}
	}
	return nil
}
