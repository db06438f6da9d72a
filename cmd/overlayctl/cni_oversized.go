package main

import (
	"fmt"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// oversized is a container whose MTU is larger than the network's, as it is when that was changed since it was attached.
// The daemon cannot change it: that would take the right to enter the namespaces of others.
type oversized struct {
	ContainerID string            `json:"containerID"`
	IfName      string            `json:"ifName"`
	MTU         int               `json:"mtu"` // in bytes
	Labels      map[string]string `json:"labels,omitempty"`
}

// String is what a person needs to find the container.
func (o oversized) String() string {
	return containerLine(o.ContainerID, o.IfName, fmt.Sprintf("an MTU of %d, larger than the network's", o.MTU), o.Labels)
}

// findOversized lists the containers whose MTU is larger than the network's.
func findOversized(living []attachment.Attachment, s api.Status) []oversized {
	if living == nil || s.MTU == 0 {
		return nil
	}
	found := []oversized{}
	for _, x := range living {
		if mtu := mtuOf(x); mtu > s.MTU {
			found = append(found, oversized{x.ContainerID, x.IfName, mtu, x.Labels})
		}
	}
	return found
}

// mtuOf is the MTU of a container's interface; 0 if there is none, any more or to be looked at.
func mtuOf(x attachment.Attachment) (mtu int) {
	_ = ns.WithNetNSPath(x.Netns, func(ns.NetNS) error {
		link, err := netlink.LinkByName(x.IfName)
		if err == nil {
			mtu = link.Attrs().MTU
		}
		return err
	})
	return mtu
}
