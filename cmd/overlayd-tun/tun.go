package main

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Of include/uapi/linux, and in no Go package.
const (
	tunExclusive     = 0x8000 // IFF_TUN_EXCL: a link that is there is not taken over
	inet6AddrGenMode = 8      // IFLA_INET6_ADDR_GEN_MODE
	addrGenModeNone  = 1      // IN6_ADDR_GEN_MODE_NONE
)

const devicePath = "/dev/net/tun"

// queueLen is how many packets wait for this process, which may wait for a processor itself: with the kernel's 500 a busy host lost
// what came in 400 ms at 1,300 a second. At a gigabit in full packets it is 60 ms.
const queueLen = 5000

// openTUN makes a TUN link, which is down, and goes when the descriptor is closed. Reads do not wait.
func openTUN(name string) (fd int, err error) {
	fd, err = unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("this host has no %s (%w): load the module tun; in a container or a unit, let it see the device", devicePath, err)
	case err != nil:
		return -1, fmt.Errorf("open %s: %w", devicePath, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | tunExclusive)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL):
		err = fmt.Errorf("a link of that name exists, which this process did not make: remove or rename it (%w)", err)
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("make a TUN link (needs CAP_NET_ADMIN): %w", err)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setUp gives a link its alias, MTU and queue, and sets it up. It takes no IPv6 address of its own: nothing is sent that nobody sent.
func setUp(name, alias string, mtu int) error {
	c, err := rtnl.Dial(netns.None(), rtnl.AnswersSize)
	if err != nil {
		return err
	}
	defer c.Close()
	var b rtnl.Batch
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{})
	b.AttrString(unix.IFLA_IFNAME, name)
	b.Nest(unix.IFLA_AF_SPEC, func() {
		b.Nest(unix.AF_INET6, func() { b.AttrU8(inet6AddrGenMode, addrGenModeNone) })
	})
	b.End()
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{Flags: unix.IFF_UP, Change: unix.IFF_UP})
	b.AttrString(unix.IFLA_IFNAME, name)
	b.AttrU32(unix.IFLA_MTU, uint32(mtu))
	b.AttrU32(unix.IFLA_TXQLEN, queueLen)
	b.Attr(unix.IFLA_IFALIAS, []byte(alias))
	b.End()
	failed, err := c.Exec(&b, nil) // a host may be without IPv6
	if err == nil {
		err = failed[1]
	}
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// mtu is that of a link; 0 if it is not there.
func mtu(name string) int {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return link.MTU
}
