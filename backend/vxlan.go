package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

const (
	// flannelPort is the kernel's own default from before IANA assigned 4789 (drivers/net/vxlan/vxlan_core.c);
	// flannel never set another.
	flannelPort = 8472
	// nameSize is how long a link's name may be, in bytes: IFNAMSIZ less its final zero.
	nameSize = 15
)

// vxlanOptions are flannel's keys under Backend.
type vxlanOptions struct {
	VNI           uint32
	Port          uint16 // UDP; 0: flannelPort
	MTU           int    // of the underlay, bytes; 0: that of its link
	GBP           bool
	Learning      bool
	DirectRouting bool
}

// vxlanData is flannel's BackendData, and what flannel neither says nor reads: the port, as it knows its network's, the address
// that packets come from, and whether they need a checksum.
type vxlanData struct {
	VNI     uint32
	VtepMAC string
	Port    uint16     // where the host listens; 0: unknown
	Source  netip.Addr `json:",omitzero"` // what packets come from, if not from the public IP: of hosts behind NAT on its inner side
	// ZeroChecksum says that the host takes UDP over IPv6 without one, as RFC 6935 lets tunnels.
	ZeroChecksum bool `json:",omitzero"`
}

// vxlan wraps packets in UDP. A peer is one neighbour, one FDB entry and one route; every VTEP owns the first
// address of its host's subnet, which is the gateway of those routes.
type vxlan struct {
	vxlanOptions
	host  Host
	links map[subnet.Family]kernel.VXLAN // of the network's own VNI
}

func parseVXLAN(options json.RawMessage) (vxlanOptions, []string, error) {
	o := vxlanOptions{VNI: 1}
	// MacPrefix and Name are flannel's for Windows.
	unknown, err := decode(options, &o, "Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting", "MacPrefix", "Name")
	switch {
	case err != nil:
		return o, nil, err
	case o.VNI == 0 || o.VNI > maxVNI(subnet.IPv4): // IPv6 is judged when the host is known
		return o, nil, fmt.Errorf("network config: Backend.VNI: %d is not in 1-%d", o.VNI, maxVNI(subnet.IPv4))
	case o.MTU < 0:
		return o, nil, fmt.Errorf("network config: Backend.MTU: %d is not a number of bytes", o.MTU)
	case o.MTU != 0 && o.MTU < leastMTU(subnet.IPv4)+overhead(subnet.IPv4): // IPv6 is judged when the host is known
		return o, nil, fmt.Errorf("network config: Backend.MTU: %d leaves %d bytes for containers: IPv4 needs %d",
			o.MTU, max(0, o.MTU-overhead(subnet.IPv4)), leastMTU(subnet.IPv4))
	}
	if o.Port == 0 {
		o.Port = flannelPort
	}
	return o, unknown, nil
}

func (o vxlanOptions) bind(host Host) (Backend, error) {
	if o.MTU > host.MTU {
		return nil, fmt.Errorf("network config: Backend.MTU: %d is more than %s carries (%d)", o.MTU, host.Link, host.MTU)
	}
	if o.MTU == 0 {
		o.MTU = host.MTU
	}
	b := vxlan{vxlanOptions: o, host: host, links: map[subnet.Family]kernel.VXLAN{}}
	for f := range host.Addrs {
		if o.VNI > maxVNI(f) {
			return nil, fmt.Errorf("network config: Backend.VNI: %d is not in 1-%d: its link would be %s, and names have %d bytes",
				o.VNI, maxVNI(f), linkName(f, o.VNI), nameSize)
		}
		l, err := b.takeOver(b.newLink(f, o.VNI))
		if err != nil {
			return nil, err
		}
		b.links[f] = l
	}
	return b, checkMTU(host, b.MTU())
}

// overhead is what vxlan costs of the underlay's MTU, in bytes: outer IP header, UDP, vxlan and inner Ethernet
// (RFC 7348, section 5).
func overhead(underlay subnet.Family) int {
	if underlay == subnet.IPv4 {
		return 20 + 8 + 8 + 14
	}
	return 40 + 8 + 8 + 14
}

// MTU is that of the narrowest link: containers of a dual-stack network have one for both families.
func (b vxlan) MTU() int {
	least := b.vxlanOptions.MTU
	for f := range b.host.Addrs {
		least = min(least, b.vxlanOptions.MTU-overhead(f))
	}
	return least
}

func (b vxlan) WantsNear() bool { return b.DirectRouting && !b.host.Unbound }

func (b vxlan) Data(f subnet.Family) json.RawMessage {
	// Numbers, a string and an address: it cannot fail.
	l := b.link(f, b.VNI)
	d := vxlanData{VNI: b.VNI, VtepMAC: l.MAC.String(), Port: b.Port, ZeroChecksum: l.ZeroChecksum}
	if source, public := b.host.Addrs[f], b.host.PublicIPs[f]; public.IsValid() && source != public {
		d.Source = source
	}
	data, _ := json.Marshal(d)
	return data
}

func (b vxlan) Local(own subnet.Endpoint) []kernel.Object { return b.vtep(own, b.VNI) }

func (b vxlan) Peer(own, peer subnet.Endpoint, near bool) (string, []kernel.Object, error) {
	if b.DirectRouting && near {
		r, err := direct(b.host, peer)
		return "direct", []kernel.Object{r}, err
	}
	if !peer.PublicIP.IsValid() {
		return "", nil, errors.New("the lease has no public IP of its subnet's family")
	}
	f := subnet.FamilyOf(peer.Subnet.Addr())
	d, mac, err := b.parseData(f, peer.Data)
	if err != nil {
		return "", nil, err
	}
	link := b.link(f, d.VNI)
	if mac == link.MAC {
		return "", nil, OwnError{MAC: mac}
	}
	if d.Port == link.Port {
		d.Port = 0
	}
	gateway := peer.Subnet.Addr()
	return "vxlan", append(b.vtep(own, d.VNI),
		kernel.Neighbour{Link: link.Name, IP: gateway, MAC: mac},
		kernel.FDB{Link: link.Name, MAC: mac, Dst: peer.PublicIP, Port: d.Port},
		kernel.Route{Dst: peer.Subnet, Via: gateway, Link: link.Name, OnLink: true},
	), nil
}

// vtep is the link for a VNI and its address. A peer claims them as well as the host, so that they are there for
// as long as one of them needs them: a network that moves to another VNI or backend moves host by host.
func (b vxlan) vtep(own subnet.Endpoint, vni uint32) []kernel.Object {
	f := subnet.FamilyOf(own.Subnet.Addr())
	link := b.link(f, vni)
	objs := make([]kernel.Object, 0, 5) // with what reaches a peer
	return append(objs, link, kernel.Address{Link: link.Name, Prefix: netip.PrefixFrom(own.Subnet.Addr(), f.Bits())})
}

// takeOver gives l name and MAC of a link that is there already and that the kernel allows no second one beside, so that
// peers need not hear of another: the host's own of before, or flannel's. Where l's name is that of a link of another port
// it steps aside: that goes on receiving, and Linux before 6.2 renames no link that is up (bd039b5ea2a9).
func (b vxlan) takeOver(l kernel.VXLAN) (kernel.VXLAN, error) {
	taken := false
	for _, o := range b.host.Former {
		switch had, ok := o.(kernel.VXLAN); {
		case ok && had.Same(l):
			l.Name, l.MAC, l.ARP, l.ZeroChecksum = had.Name, had.MAC, had.ARP, had.ZeroChecksum
			return l, nil
		case ok && had.Name == l.Name:
			taken = true
		}
	}
	if taken {
		l = l.Aside()
	}
	for _, e := range b.host.Present {
		had, ok := e.Link.(kernel.VXLAN)
		switch {
		case ok && had.Port == l.Port && e.Foreign == kernel.External: // it has the port for itself
			return l, fmt.Errorf("%s has UDP port %d for all VNIs (external): remove it, or give the network another Port", had.Name, had.Port)
		case !ok || !had.Same(l):
			continue
		case e.Foreign != "":
			return l, fmt.Errorf("%s of VNI %d and port %d is a vxlan link of somebody else, it has %s: remove it, or give the network another VNI",
				had.Name, had.VNI, had.Port, e.Foreign)
		}
		l.Name, l.MAC, l.ARP, l.ZeroChecksum = had.Name, had.MAC, had.ARP, had.ZeroChecksum
		break
	}
	return l, nil
}

// link is the vxlan link for a VNI over the underlay of family f. Peers that have not followed a change yet are reached by
// those of before, and not by what the network's options would make of their VNI.
func (b vxlan) link(f subnet.Family, vni uint32) kernel.VXLAN {
	if l, ok := b.links[f]; ok && l.VNI == vni {
		return l
	}
	for _, o := range b.host.Former {
		if l, ok := o.(kernel.VXLAN); ok && l.VNI == vni && subnet.FamilyOf(l.Local) == f {
			return l
		}
	}
	return b.newLink(f, vni)
}

func (b vxlan) newLink(f subnet.Family, vni uint32) kernel.VXLAN {
	l := kernel.VXLAN{
		Name:     linkName(f, vni),
		VNI:      vni,
		Port:     b.Port,
		Local:    b.host.Addrs[f],
		MAC:      b.host.VTEP,
		MTU:      b.vxlanOptions.MTU - overhead(f),
		GBP:      b.GBP,
		Learning: b.Learning,
	}
	if !b.host.Unbound {
		l.Underlay = b.host.Link
	}
	// Links with a port have one socket: they all take packets without a checksum, or none does (vxlan_find_sock).
	l.ZeroChecksum = f == subnet.IPv6 && !slices.ContainsFunc(b.host.Present, func(e kernel.Existing) bool {
		o, ok := e.Link.(kernel.VXLAN)
		return ok && o.Port == l.Port && o.Local.Is6() && !o.ZeroChecksum
	})
	return l
}

// maxVNI is the largest VNI whose link's name is not too long; vxlan has 24 bits for it.
func maxVNI(underlay subnet.Family) uint32 {
	if underlay == subnet.IPv4 {
		return 9_999_999
	}
	return 999_999
}

func linkName(underlay subnet.Family, vni uint32) string {
	if underlay == subnet.IPv4 {
		return fmt.Sprintf("overlay.%d", vni)
	}
	return fmt.Sprintf("overlay6.%d", vni)
}

// Told is what a peer's lease tells of its vxlan packets, besides what flannel's do: the address that they come from, if that is
// not the public IP, else the zero Addr; and whether it takes UDP over IPv6 without a checksum. The data are those of one endpoint.
func Told(data json.RawMessage) (source netip.Addr, zeroChecksum bool) {
	var d struct {
		Source       netip.Addr
		ZeroChecksum bool
	}
	if len(data) == 0 || json.Unmarshal(data, &d) != nil {
		return netip.Addr{}, false
	}
	return d.Source, d.ZeroChecksum
}

// parseData reads a peer's BackendData. Old flannels left VNI out; they knew one network's.
func (b vxlan) parseData(f subnet.Family, data json.RawMessage) (d vxlanData, mac kernel.MAC, err error) {
	d.VNI = b.VNI
	if err := json.Unmarshal(data, &d); err != nil {
		return d, mac, fmt.Errorf("BackendData: %w", err)
	}
	if d.VNI == 0 || d.VNI > maxVNI(f) {
		return d, mac, fmt.Errorf("BackendData: VNI %d is not in 1-%d", d.VNI, maxVNI(f))
	}
	// A lease that names DNS, say, would have every host that sends to the subnet send there, from the port of vxlan.
	if d.Port != 0 && d.Port != b.Port && d.Port < 1024 {
		return d, mac, fmt.Errorf("BackendData: Port %d is one of the system's, and not the network's (%d)", d.Port, b.Port)
	}
	hw, err := net.ParseMAC(d.VtepMAC)
	if err != nil || len(hw) != len(mac) {
		return d, mac, fmt.Errorf("BackendData: VtepMAC %q is not an Ethernet address", d.VtepMAC)
	}
	copy(mac[:], hw)
	if mac == (kernel.MAC{}) || mac[0]&1 != 0 {
		return d, mac, fmt.Errorf("BackendData: VtepMAC %s is not a unicast address", mac)
	}
	return d, mac, nil
}
