package underlay

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Around is what the host reaches by its links and gateways, and must not lose to an overlay.
type Around struct {
	Connected []Connected  // sorted by prefix, without loopback and what is local to a link
	Gateways  []netip.Addr // of the default routes
}

// Connected is what is directly on a link, as its address says.
type Connected struct {
	Prefix netip.Prefix
	Link   string
	// Containers says that the link is of a kind that container runtimes make, and that no wire is plugged into it. It
	// may have an address of the overlay.
	Containers bool
}

// containerKinds are the kinds of links between a host and its containers, and our own.
var containerKinds = []string{"bridge", "veth", "macvlan", "ipvlan", "tuntap", "openvswitch", "vxlan"}

// LookAround reads what is around the host in ns.
func LookAround(ns netns.NsHandle) (Around, error) {
	h, err := readHost(ns, Selector{IPv4: true, IPv6: true})
	return h.around, err
}

// wired are the indexes of the links that have, or are, a port of a link that is not a container's.
func wired(list []netlink.Link) map[int]bool {
	is := map[int]bool{}
	for _, l := range list {
		if !slices.Contains(containerKinds, l.Type()) && !ours(l.Attrs().Name) {
			is[l.Attrs().Index], is[l.Attrs().MasterIndex] = true, true
		}
	}
	return is
}

// ours says whether a link is one of an overlay's by its name: those of wireguard are as often somebody else's.
func ours(name string) bool {
	return slices.ContainsFunc([]string{"overlay", "flannel", "ovw-", "ovx-", "ovi-", "ovu-"}, func(p string) bool { return strings.HasPrefix(name, p) })
}

// connected are the prefixes that an address of a link says to be on it: two if it has a peer.
func connected(addr netlink.Addr) (all []netip.Prefix) {
	for _, n := range []*net.IPNet{addr.IPNet, addr.Peer} {
		if n == nil {
			continue
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		bits, _ := n.Mask.Size()
		if ip = ip.Unmap(); ip.IsGlobalUnicast() {
			all = append(all, netip.PrefixFrom(ip, bits).Masked())
		}
	}
	return all
}
