package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

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
		if i.Sandbox == "" {
			a.HostIfName, a.HostMAC = i.Name, i.Mac // the last is the container's
		}
	}
	if a.HostIfName == "" {
		return a, nil
	}
	link, err := netlink.LinkByName(a.HostIfName)
	if errors.As(err, &netlink.LinkNotFoundError{}) || err == nil && link.Type() != "veth" {
		a.HostIfName, a.HostMAC = "", ""
		return a, nil
	}
	if err != nil {
		return a, fmt.Errorf("interface %s: %w", a.HostIfName, err)
	}
	a.HostIfIndex, a.HostMAC, a.IfIndex = link.Attrs().Index, link.Attrs().HardwareAddr.String(), link.Attrs().ParentIndex
	return a, nil
}

// groupOf is the group of whoever writes subnet.env, the daemon, which may read the attachments too.
func groupOf(subnetFile string) uint32 {
	info, err := os.Stat(subnetFile)
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Gid
}
