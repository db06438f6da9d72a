package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

// tapBridge joins the container's link with what stands for the machine's, within the namespace.
const tapBridge = "br-tap"

// portPrefix is what the names of our ports of bridges on the host begin with.
const portPrefix = "ovport"

// machineLink asks for a link for a machine that runs elsewhere than in the namespace: a tap in it, or a bridge on the host. Both
// empty: none. One machine is behind it, with the MAC and the addresses of the container: others are let pass by no guard.
type machineLink struct{ tap, bridge string }

// machine is what a virtual machine, or a container of somebody else's, is to have: what the guard lets pass and policies know.
type machine struct {
	Name      string   `json:"name"` // of the tap, or the bridge
	MAC       string   `json:"mac"`
	Addresses []string `json:"addresses"` // with the length of the host's subnet, such as 10.244.12.2/24
	Gateways  []string `json:"gateways"`
	MTU       int      `json:"mtu"`
}

// plug gives a machine what the attachment of the namespace at path has: the namespace itself keeps no address.
func (l machineLink) plug(name, path string, result *types100.Result) (*machine, error) {
	m := &machine{Name: l.tap + l.bridge, Addresses: []string{}, Gateways: []string{}}
	for _, ip := range result.IPs {
		m.Addresses = append(m.Addresses, ip.Address.String())
		if ip.Gateway != nil {
			m.Gateways = append(m.Gateways, ip.Gateway.String())
		}
	}
	peer := ""
	err := ns.WithNetNSPath(path, func(host ns.NetNS) error {
		link, err := netlink.LinkByName(netnsIfName)
		if err != nil {
			return fmt.Errorf("%s: %w", netnsIfName, err)
		}
		if link.Type() != "veth" { // of a macvlan, say, the other end would send to nobody but that MAC
			return fmt.Errorf("%s is of type %s: a machine takes the place of a veth, which the delegates bridge and ptp make", netnsIfName, link.Type())
		}
		m.MAC, m.MTU = link.Attrs().HardwareAddr.String(), link.Attrs().MTU
		if l.bridge == "" {
			return m.join(link, &netlink.Tuntap{LinkAttrs: linkAttrs(l.tap, 0), Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI})
		}
		peer = fmt.Sprintf("%s%x", portPrefix, []byte(randomMAC()[2:]))
		return m.join(link, &netlink.Veth{LinkAttrs: linkAttrs("to-host", m.MTU), PeerName: peer, PeerNamespace: netlink.NsFd(int(host.Fd()))})
	})
	if err == nil && l.bridge != "" {
		err = hostBridge(l.bridge, bridgeAlias(name), peer, m.MTU)
	}
	if err = errors.Join(err, noHairpin(result)); err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name, err)
	}
	return m, nil
}

// join joins the container's link and a new one by a bridge. The former gets another MAC, since a bridge keeps what is sent to its
// ports' own.
func (m *machine) join(link, made netlink.Link) error {
	if _, missing := netlink.LinkByName(made.Attrs().Name); missing == nil || made.Attrs().Name == tapBridge {
		return errors.New("the namespace has an interface of this name already")
	}
	bridge := &netlink.Bridge{LinkAttrs: linkAttrs(tapBridge, m.MTU)}
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
		withoutIPv6(l.Attrs().Name)
	}
	return errors.Join(
		netlink.LinkSetHardwareAddr(link, randomMAC()), netlink.LinkSetMTU(made, m.MTU),
		netlink.LinkSetMaster(link, bridge), netlink.LinkSetLearning(link, false), // the machine is behind the other
		netlink.LinkSetMaster(made, bridge),
		netlink.LinkSetUp(bridge), netlink.LinkSetUp(made),
	)
}

// hostBridge makes the bridge on the host that leads to the namespace by the link of the name port. It has no address of the host's.
func hostBridge(name, alias, port string, mtu int) error {
	if _, missing := netlink.LinkByName(name); missing == nil {
		return errors.New("the host has an interface of this name already")
	}
	bridge := &netlink.Bridge{LinkAttrs: linkAttrs(name, mtu)}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	link, err := netlink.LinkByName(port)
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", port, err), netlink.LinkDel(bridge))
	}
	withoutIPv6(name)
	withoutIPv6(port)
	err = errors.Join(netlink.LinkSetAlias(bridge, alias), netlink.LinkSetMaster(link, bridge), netlink.LinkSetUp(link), netlink.LinkSetUp(bridge))
	if err != nil {
		return errors.Join(err, netlink.LinkDel(bridge))
	}
	return nil
}

// removeHostBridge removes the bridge that add has made for the namespace, if it has.
func removeHostBridge(name string) error {
	link, err := netlink.LinkByAlias(bridgeAlias(name))
	if errors.As(err, &netlink.LinkNotFoundError{}) || err == nil && link.Type() != "bridge" {
		return nil
	}
	if err != nil {
		return err
	}
	links, err := netlinksafe.LinkList()
	for _, port := range links { // ours would go with the namespace, some time later
		if port.Attrs().MasterIndex == link.Attrs().Index && strings.HasPrefix(port.Attrs().Name, portPrefix) {
			err = errors.Join(err, netlink.LinkDel(port))
		}
	}
	return errors.Join(err, netlink.LinkDel(link))
}

// bridgeAlias is that of the bridge of a namespace, by which del knows it.
func bridgeAlias(name string) string { return "overlayctl netns " + name }

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

func withoutIPv6(link string) {
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", []byte("1"), 0) // where there is IPv6
}

func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // which never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

func linkAttrs(name string, mtu int) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	return attrs
}
