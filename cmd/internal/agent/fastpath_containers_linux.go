package agent

import (
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/backend/bypass"
	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// containers are those of this host's subnets that the records tell of, whose their addresses are, and what is ours that they
// are attached to. Of two with one address it is the later one's: of the other only the record is left.
func (f *FastPath) containers(records []attachment.Attachment, end FastEnd) (all []fastpath.Container, owners map[netip.Addr]attachment.Key, ours bypass.Ours) {
	ours = bypass.Ours{Underlay: end.Link, Direct: end.Direct, Networks: end.Networks, Programs: f.programs}
	for _, t := range end.Tunnels {
		ours.Overlays = append(ours.Overlays, t.Link)
		ours.Tunnels = append(ours.Tunnels, netip.AddrPortFrom(t.Addr, t.Port))
	}
	slices.SortFunc(records, func(a, b attachment.Attachment) int { return b.Created.Compare(a.Created) })
	bridges, there, owners := map[int]netlink.Link{}, map[int]bool{}, map[netip.Addr]attachment.Key{}
	for _, a := range records {
		c, bridge, ok := f.container(a, bridges)
		if there[a.HostIfIndex] = true; !ok {
			continue
		}
		for _, p := range a.Addresses {
			addr := p.Addr().Unmap()
			_, taken := owners[addr]
			if !taken && slices.ContainsFunc(end.Subnets, func(s netip.Prefix) bool { return s.Masked().Contains(addr) }) {
				owners[addr], c.Addrs = a.Key(), append(c.Addrs, addr)
			}
		}
		if len(c.Addrs) == 0 {
			continue
		}
		all = append(all, c)
		ours.Containers = append(ours.Containers, c.Index)
		if bridge != "" && !slices.Contains(ours.Bridges, bridge) {
			ours.Bridges = append(ours.Bridges, bridge)
		}
	}
	for index := range f.masters {
		if !there[index] {
			delete(f.masters, index)
		}
	}
	slices.Sort(ours.Bridges)
	return all, owners, ours
}

// container is the one of a record, without its addresses, and the name of its bridge, if it has one.
func (f *FastPath) container(a attachment.Attachment, bridges map[int]netlink.Link) (c fastpath.Container, bridge string, ok bool) {
	port, ok := a.Port()
	if !ok {
		return c, "", false
	}
	c.Index = port.Index
	if c.MAC, ok = macOf(port.MAC); !ok {
		return c, "", false
	}
	if port.Routed {
		mac, _ := net.ParseMAC(a.HostMAC)
		c.Gateway, ok = macOf(mac)
		return c, "", ok
	}
	link := f.bridge(port.Index, bridges)
	if link == nil {
		return c, "", false
	}
	c.Bridge = link.Attrs().Index
	c.Gateway, ok = macOf(link.Attrs().HardwareAddr)
	return c, link.Attrs().Name, ok
}

// bridge is the one that a link is a port of; nil: there is none. Those that were asked for are in bridges.
func (f *FastPath) bridge(port int, bridges map[int]netlink.Link) netlink.Link {
	master, known := f.masters[port]
	if !known {
		link, err := netlink.LinkByIndex(port)
		if err != nil || link.Attrs().MasterIndex == 0 { // it is on its way there, or gone: its record will be
			return nil
		}
		master = link.Attrs().MasterIndex
		f.masters[port] = master
	}
	link, known := bridges[master]
	if !known {
		link, _ = netlink.LinkByIndex(master) // nil: there is none
		bridges[master] = link
	}
	return link
}

func macOf(a net.HardwareAddr) (m kernel.MAC, ok bool) { return m, copy(m[:], a) == len(m) }
