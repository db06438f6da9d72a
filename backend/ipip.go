package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// ipipOptions are flannel's keys under Backend.
type ipipOptions struct{ DirectRouting bool }

// ipip sends IPv4 packets as protocol 4 (RFC 2003). One link reaches all peers: its routes have the peers' hosts as gateways.
type ipip struct {
	ipipOptions
	host Host
	link kernel.IPIP
}

func parseIPIP(options json.RawMessage) (ipipOptions, []string, error) {
	var o ipipOptions
	unknown, err := decode(options, &o, "Type", "DirectRouting")
	return o, unknown, err
}

func (o ipipOptions) bind(host Host) (Backend, error) {
	local, err := onlyIPv4("ipip", host)
	if err != nil {
		return nil, err
	}
	if err := host.lacks(kernel.FeatureIPIP); err != nil {
		return nil, fmt.Errorf("ipip: %w; use another backend", err)
	}
	link := kernel.IPIP{Name: kernel.Named(kernel.IPIPName, host.Network), Local: local, MTU: host.MTU - ipHeader}
	b := ipip{o, host, host.sameIPIP(link)}
	return b, checkMTU(host, b.MTU())
}

func (h Host) lacks(f kernel.Feature) error {
	if h.Lacks == nil {
		return nil
	}
	return h.Lacks(f)
}

// ipHeader and udpHeader are what the outer headers cost of the underlay's MTU, in bytes (RFC 791 and 768).
const (
	ipHeader  = 20
	udpHeader = 8
)

// onlyIPv4 is the host's address for a backend that carries nothing but IPv4, or why it does not carry the network.
func onlyIPv4(kind string, host Host) (netip.Addr, error) {
	if _, ok := host.Addrs[subnet.IPv6]; ok {
		return netip.Addr{}, errIPv4Only(kind)
	}
	return host.Addrs[subnet.IPv4], nil
}

func errIPv4Only(kind string) error {
	return fmt.Errorf("network config: Backend.Type: %s carries IPv4 only, as flannel's does, and the network has IPv6: use vxlan, host-gw or wireguard", kind)
}

// sameIPIP gives l the name of a link that is there already, and that the kernel allows no second one beside: the host's own of
// before, or flannel's.
func (h Host) sameIPIP(l kernel.IPIP) kernel.IPIP {
	for _, o := range h.Former {
		if had, ok := o.(kernel.IPIP); ok && had.Local == l.Local && had.Underlay == l.Underlay {
			l.Name = had.Name
			return l
		}
	}
	for _, e := range h.Present {
		had, ok := e.Link.(kernel.IPIP)
		if ok && e.Foreign == "" && had.Name == kernel.FlannelIPIPName && had.Local == l.Local && had.Port == l.Port {
			l.Name = had.Name
		}
	}
	return l
}

func (b ipip) MTU() int                                  { return b.link.MTU }
func (ipip) Data(subnet.Family) json.RawMessage          { return nil }
func (b ipip) WantsNear() bool                           { return b.DirectRouting && !b.host.Unbound }
func (b ipip) Local(own subnet.Endpoint) []kernel.Object { return onLink(b.link, own) }

func (b ipip) Peer(own, peer subnet.Endpoint, near bool) (string, []kernel.Object, error) {
	if b.DirectRouting && near {
		r, err := direct(b.host, peer)
		return "direct", []kernel.Object{r}, err
	}
	if !peer.PublicIP.IsValid() {
		return "", nil, errors.New("the lease has no public IP of its subnet's family")
	}
	return "ipip", append(onLink(b.link, own), through(b.link, peer)), nil
}

// onLink is a link and its address. A peer claims them as well as the host: see vxlan.vtep.
func onLink(l kernel.Object, own subnet.Endpoint) []kernel.Object {
	name, _ := kernel.Tunnel(l)
	objs := make([]kernel.Object, 0, 4) // with what reaches a peer
	return append(objs, l, kernel.Address{Link: name, Prefix: netip.PrefixFrom(own.Subnet.Addr(), own.Subnet.Addr().BitLen())})
}

// through is the route to a peer's subnet through a tunnel whose far end is the gateway.
func through(l kernel.IPIP, peer subnet.Endpoint) kernel.Route {
	return kernel.Route{Dst: peer.Subnet, Via: peer.PublicIP, Link: l.Name, OnLink: true}
}
