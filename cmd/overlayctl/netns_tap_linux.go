package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

// tapBridge joins the container's link and the tap, within the namespace.
const tapBridge = "br-tap"

// tap is what a virtual machine behind the tap is to have: the addresses and the MAC of the container, which the guard lets pass
// and policies know.
type tap struct {
	Name      string   `json:"name"`
	MAC       string   `json:"mac"`
	Addresses []string `json:"addresses"` // with the length of the host's subnet, such as 10.244.12.2/24
	Gateways  []string `json:"gateways"`
	MTU       int      `json:"mtu"`
}

// plugTap makes a tap in the namespace at path, and gives it what the attachment has: the namespace itself keeps no address.
func plugTap(path, name string, result *types100.Result) (*tap, error) {
	t := &tap{Name: name, Addresses: []string{}, Gateways: []string{}}
	for _, ip := range result.IPs {
		t.Addresses = append(t.Addresses, ip.Address.String())
		if ip.Gateway != nil {
			t.Gateways = append(t.Gateways, ip.Gateway.String())
		}
	}
	err := ns.WithNetNSPath(path, func(ns.NetNS) error {
		link, err := netlink.LinkByName(netnsIfName)
		if err != nil {
			return fmt.Errorf("%s: %w", netnsIfName, err)
		}
		if link.Type() != "veth" { // of a macvlan, say, the other end would send to nobody but that MAC
			return fmt.Errorf("%s is of type %s: a tap takes the place of a veth, which the delegates bridge and ptp make", netnsIfName, link.Type())
		}
		t.MAC, t.MTU = link.Attrs().HardwareAddr.String(), link.Attrs().MTU
		return t.plug(link)
	})
	if err = errors.Join(err, noHairpin(result)); err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return t, nil
}

// noHairpin has the host's bridge not send the machine its own broadcasts back, by which it would take its address for another's.
func noHairpin(result *types100.Result) error {
	for _, i := range result.Interfaces {
		if i.Sandbox != "" {
			continue
		}
		port, err := netlink.LinkByName(i.Name)
		if err == nil && port.Type() == "veth" && port.Attrs().MasterIndex != 0 {
			err = netlink.LinkSetHairpin(port, false)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", i.Name, err)
		}
	}
	return nil
}

// plug joins the container's link and a new tap by a bridge. The link gets another MAC, since a bridge keeps what is sent to its
// ports' own.
func (t *tap) plug(link netlink.Link) error {
	other := make(net.HardwareAddr, 6)
	_, _ = rand.Read(other) // which never fails
	other[0] = other[0]&^1 | 2
	if _, missing := netlink.LinkByName(t.Name); missing == nil || t.Name == tapBridge {
		return errors.New("the namespace has an interface of this name already")
	}
	bridge := &netlink.Bridge{LinkAttrs: linkAttrs(tapBridge, t.MTU)}
	made := &netlink.Tuntap{LinkAttrs: linkAttrs(t.Name, 0), Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("bridge %s: %w", tapBridge, err)
	}
	if err := netlink.LinkAdd(made); err != nil {
		return err
	}
	addrs, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if err := netlink.AddrDel(link, &addr); err != nil {
			return fmt.Errorf("%s: %s: %w", netnsIfName, addr.IPNet, err)
		}
	}
	for _, l := range []netlink.Link{bridge, made, link} { // what the namespace itself sent would be of nobody
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+l.Attrs().Name+"/disable_ipv6", []byte("1"), 0) // where there is IPv6
	}
	return errors.Join(
		netlink.LinkSetHardwareAddr(link, other), netlink.LinkSetMTU(made, t.MTU),
		netlink.LinkSetMaster(link, bridge), netlink.LinkSetLearning(link, false), // the machine is behind the other
		netlink.LinkSetMaster(made, bridge),
		netlink.LinkSetUp(bridge), netlink.LinkSetUp(made),
	)
}

func linkAttrs(name string, mtu int) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	return attrs
}
