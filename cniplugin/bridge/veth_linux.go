package bridge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/ports"
)

// veth is a pair that this process makes: the container's interface, known by its index from then on, since its name may
// become another's, and the bridge's port, whose alias says whose it is.
type veth struct {
	pair   *netlink.Veth
	port   netlink.Link
	inside *netlink.Handle // of the container's namespace
}

// makeVeth makes the pair, with the port up; host is a handle of this namespace. What it returns is to be closed.
func (a *Attachment) makeVeth(netns ns.NetNS, host *netlink.Handle, mac net.HardwareAddr, configure func() error) (*veth, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = a.IfName, a.conf.MTU, mac
	v := &veth{pair: &netlink.Veth{LinkAttrs: attrs}}
	return v, netns.Do(func(hostNS ns.NetNS) (err error) {
		v.pair.PeerName = fmt.Sprintf("%s%08x", a.prefix(), rand.Uint32())
		if v.inside, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		v.pair.PeerNamespace = netlink.NsFd(int(hostNS.Fd()))
		if err = v.inside.LinkAdd(v.pair); errors.Is(err, unix.EEXIST) {
			return errors.New("the container has an interface of this name already")
		}
		if err != nil {
			return err
		}
		if v.port, err = host.LinkByName(v.pair.PeerName); err != nil {
			return err
		}
		if err := errors.Join(host.LinkSetAlias(v.port, a.alias()), host.LinkSetUp(v.port)); err != nil {
			return fmt.Errorf("%s: %w", v.pair.PeerName, err)
		}
		return configure()
	})
}

// prefix is what the name of the port begins with.
func (a *Attachment) prefix() string {
	if a.Unheld { // without elements it would be cut off for ever
		return "veth"
	}
	return ports.Prefix
}

// alias is that of the container's port: whose it is, for [Attachment.Del] and for people.
func (a *Attachment) alias() string {
	alias := fmt.Sprintf("overlay %s %s %s", a.ID, a.IfName, a.conf.Name)
	return alias[:min(len(alias), 255)] // IFALIASZ
}

// announce tells the neighbours which MAC has the container's addresses now, of both families: to set it, though to what
// it is, makes the kernel do so (arp_notify, ndisc_notify).
func (v *veth) announce() error { return v.inside.LinkSetHardwareAddr(v.pair, v.pair.HardwareAddr) }

// remove removes the pair, if it was made.
func (v *veth) remove() error {
	if v.pair.Index == 0 {
		return nil
	}
	if err := v.inside.LinkDel(v.pair); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

func (v *veth) close() {
	if v.inside != nil {
		v.inside.Close()
	}
}

// macOf derives a container's MAC from its address, so that no neighbour ever has another one for it: locally administered,
// then the address's last five bytes, which differ within a subnet.
func macOf(ip net.IP) net.HardwareAddr {
	return append(net.HardwareAddr{0x0a}, ip.To16()[11:]...)
}
