package bridge

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Del detaches the container; what is gone already is no error. An address is free only once nothing uses it.
func (a *Attachment) Del(ctx context.Context) error {
	if err := a.Unplug(); err != nil {
		return err
	}
	return a.release(ctx)
}

// Unplug removes the container's interface, and with it its other end, and leaves it its addresses.
func (a *Attachment) Unplug() error {
	if a.Netns == "" {
		return nil
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer host.Close()
	err = ns.WithNetNSPath(a.Netns, func(ns.NetNS) error {
		link, err := netlink.LinkByName(a.IfName)
		if err == nil && a.made(host, link) {
			err = netlink.LinkDel(link)
		}
		if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	})
	_, gone := errors.AsType[ns.NSPathNotExistErr](err)
	_, other := errors.AsType[ns.NSPathNotNSErr](err) // a file in its place, as the plugin sbr leaves it
	if err != nil && !gone && !other {
		return fmt.Errorf("%s: %w", a.IfName, err)
	}
	return nil
}

// made says whether the interface is this attachment's: by the alias of its other end, which is out of the container's
// reach. The reference plugins, and this one before it did so, gave it none: then it is a port of the bridge.
func (a *Attachment) made(host *netlink.Handle, link netlink.Link) bool {
	if link.Type() != "veth" || link.Attrs().NetNsID < 0 {
		return false // its other end is in the container too
	}
	port, err := host.LinkByIndex(link.Attrs().ParentIndex)
	if err != nil || port.Type() != "veth" {
		return false
	}
	if alias := port.Attrs().Alias; alias != "" {
		return alias == a.alias()
	}
	bridge, err := host.LinkByName(a.conf.Bridge)
	return err == nil && port.Attrs().MasterIndex == bridge.Attrs().Index
}
