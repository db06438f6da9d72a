package main

import (
	"encoding/json"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// withoutSecondDefault is the attachment's configuration without the default routes that the container has by another interface:
// the kernel would put ours before them, so that a container of two networks would leave by the one that came last.
func withoutSecondDefault(a attachment.Attachment) (json.RawMessage, error) {
	var conf map[string]any
	if err := decode(a.Delegate, &conf); err != nil {
		return nil, err
	}
	if conf["type"] != "bridge" || conf["isDefaultGateway"] != true {
		return a.Delegate, nil
	}
	has := defaultRoutes(a.Netns, a.IfName)
	if len(has) == 0 {
		return a.Delegate, nil // the usual case
	}
	conf["isDefaultGateway"], conf["isGateway"] = false, true
	if ipam, ok := conf["ipam"].(map[string]any); ok {
		routes, _ := ipam["routes"].([]any)
		for _, s := range a.Subnets {
			if all := everything[s.Addr().Is6()]; !has[s.Addr().Is6()] && !hasRoute(routes, all) {
				routes = append(routes, map[string]string{"dst": all})
			}
		}
		ipam["routes"] = routes
	}
	return json.Marshal(conf)
}

// everything is what a default route leads to, by whether it is of IPv6.
var everything = map[bool]string{false: "0.0.0.0/0", true: "::/0"}

// defaultRoutes says of which families, by whether it is IPv6, a namespace has default routes by others than the interface. One that
// cannot be entered is told of elsewhere.
func defaultRoutes(netns, ifName string) map[bool]bool {
	found := map[bool]bool{}
	_ = ns.WithNetNSPath(netns, func(ns.NetNS) error {
		own := 0
		if link, err := netlink.LinkByName(ifName); err == nil {
			own = link.Attrs().Index
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, _ := netlinksafe.RouteList(nil, family)
			for _, r := range routes {
				ones := 0
				if r.Dst != nil {
					ones, _ = r.Dst.Mask.Size()
				}
				if ones == 0 && r.LinkIndex != own {
					found[family == netlink.FAMILY_V6] = true
				}
			}
		}
		return nil
	})
	return found
}
