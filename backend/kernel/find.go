package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// ErrForeignLink is the error of FindVXLAN about a link that is in the way and not to be touched.
var ErrForeignLink = errors.New("a vxlan link of somebody else")

// FindVXLAN looks for a vxlan link that already has the VNI and port, over an underlay of the family of the address: the
// kernel allows no second one. It returns name and MAC to adopt the link by, an empty name where there is none, and
// ErrForeignLink where it serves another purpose: it has a remote or a group, takes its tunnels from elsewhere, or
// belongs to a bridge. A zero namespace is the current one.
func FindVXLAN(ns netns.NsHandle, vni uint32, port uint16, underlay netip.Addr) (name string, mac MAC, err error) {
	if ns == 0 {
		ns = netns.None()
	}
	c, err := rtnl.Dial(ns, rtnl.AnswersSize)
	if err != nil {
		return "", MAC{}, fmt.Errorf("kernel: %w", err)
	}
	defer c.Close()
	all, err := dumpLinks(c, new(rtnl.Batch))
	if err != nil {
		return "", MAC{}, fmt.Errorf("kernel: dump links: %w", err)
	}
	for _, l := range all {
		v := l.vxlan
		switch {
		case l.kind == "vxlan" && v.Port == port && l.foreign == external: // it has the port for itself
			return "", MAC{}, fmt.Errorf("kernel: %w: %s has UDP port %d for all VNIs (external); remove it, or give the network another port",
				ErrForeignLink, l.name, port)
		case l.kind != "vxlan" || v.VNI != vni || v.Port != port || l.over6 != underlay.Is6():
			continue
		case l.name == v.Aside().Name: // ours: it gets its name back
			return "", MAC{}, nil
		case l.foreign != "":
			return "", MAC{}, fmt.Errorf("kernel: %w: %s of VNI %d and port %d has %s", ErrForeignLink, l.name, vni, port, l.foreign)
		}
		return l.name, v.MAC, nil
	}
	return "", MAC{}, nil
}

// removable are the links that are of our making or ours by having been adopted, in order.
func removable(c *rtnl.Conn, b *rtnl.Batch, adopted []string) ([]link, error) {
	all, err := dumpLinks(c, b)
	if err != nil {
		return nil, fmt.Errorf("dump links: %w", err)
	}
	var found []link
	for _, l := range all {
		if l.ownMade() || l.ours(l.vxlan) && slices.Contains(adopted, l.name) {
			found = append(found, l)
		}
	}
	slices.SortFunc(found, func(a, b link) int { return int(a.index - b.index) })
	return found, nil
}
