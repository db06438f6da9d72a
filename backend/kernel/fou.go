package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Feature is what a kernel may lack.
type Feature string

// The features that are looked for. FOU carries flannel's udp; no kernel loads its module by itself.
const (
	FeatureIPIP Feature = "ipip"
	FeatureFOU  Feature = "fou"
)

// Lacks says why the kernel does not have a feature; nil if it has. Where ipip is a module, that is loaded.
func Lacks(ns netns.NsHandle, f Feature) error {
	if f == FeatureFOU {
		err := rtnl.InNetns(ns, func() error { _, err := netlink.GenlFamilyGet(netlink.FOU_GENL_NAME); return err })
		if err != nil {
			return errNoFOU(err)
		}
	}
	c, err := rtnl.Dial(ns, rtnl.AnswersSize)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	defer c.Close()
	var b rtnl.Batch
	b.Begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.IfInfomsg{})
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.AttrString(unix.IFLA_INFO_KIND, "ipip")
		// What no kernel makes: it says so (ipip_tunnel_validate in net/ipv4/ipip.c), if it knows the kind at all.
		b.Nest(unix.IFLA_INFO_DATA, func() { b.AttrU8(nl.IFLA_IPTUN_PROTO, 255) })
	})
	b.End()
	failed, err := c.Exec(&b, nil)
	if err == nil && !errors.Is(failed[0], unix.EINVAL) {
		err = errNoIPIP(failed[0])
	}
	return err
}

func errNoIPIP(err error) error {
	return fmt.Errorf("this kernel makes no ipip links, its module ipip is missing: %w", err)
}

func errNoFOU(err error) error {
	return fmt.Errorf("this kernel carries nothing by FOU, its module fou is missing or not loaded (modprobe fou): %w", err)
}

// finish has the kernel take from the UDP port what comes by FOU, and sets whether inner checksums travel as containers leave
// them. Between namespaces, and virtual machines, that is unfinished, and no harm to a kernel that unwraps the packet; but a process
// that reads it from a socket, as flanneld does, cannot know.
func (i IPIP) finish(ns netns.NsHandle) error {
	return rtnl.InNetns(ns, func() error {
		if err := listen(i.Port, i.Local); err != nil {
			return err
		}
		return setTransmitOffload(i.Name, i.Unfinished)
	})
}

// listen has FOU listen at a port of the current namespace. That it does so already is no error.
func listen(port uint16, local netip.Addr) error {
	err := fouRequest(netlink.FOU_CMD_ADD, port, local)
	if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EALREADY) {
		return err
	}
	if all, err := netlink.FouList(unix.AF_INET); err == nil && slices.ContainsFunc(all, func(f netlink.Fou) bool {
		at, _ := netip.AddrFromSlice(f.Local.To4())
		return f.Port == int(port) && at == local && f.Protocol == unix.IPPROTO_IPIP && f.EncapType == netlink.FOU_ENCAP_DIRECT
	}) {
		return nil
	}
	return fmt.Errorf("UDP port %d of %s is another program's, flanneld's perhaps: stop it, or give the network another Backend.Port", port, local)
}

// unlisten undoes listen. That nobody listens is no error.
func unlisten(port uint16, local netip.Addr) error {
	err := fouRequest(netlink.FOU_CMD_DEL, port, local)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // the latter where there is no such port (fou_destroy)
		return nil
	}
	return err
}

// fouRequest is one about a port that takes IPv4 packets. netlink's FouAdd knows no local address.
func fouRequest(command uint8, port uint16, local netip.Addr) error {
	family, err := netlink.GenlFamilyGet(netlink.FOU_GENL_NAME)
	if err != nil {
		return errNoFOU(err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: command, Version: 1})
	req.AddData(nl.NewRtAttr(netlink.FOU_ATTR_PORT, binary.BigEndian.AppendUint16(nil, port)))
	req.AddData(nl.NewRtAttr(netlink.FOU_ATTR_AF, []byte{unix.AF_INET}))
	req.AddData(nl.NewRtAttr(netlink.FOU_ATTR_LOCAL_V4, local.AsSlice()))
	if command == netlink.FOU_CMD_ADD {
		req.AddData(nl.NewRtAttr(netlink.FOU_ATTR_IPPROTO, []byte{unix.IPPROTO_IPIP}))
		req.AddData(nl.NewRtAttr(netlink.FOU_ATTR_TYPE, []byte{netlink.FOU_ENCAP_DIRECT}))
	}
	if _, err = req.Execute(unix.NETLINK_GENERIC, 0); err != nil {
		return fmt.Errorf("port %d of FOU: %w", port, err)
	}
	return nil
}

// setTransmitOffload is "ethtool -K NAME tx": whether the link takes packets whose checksum is not finished.
func setTransmitOffload(name string, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("transmit offload of %s: %w", name, err)
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{unix.ETHTOOL_STXCSUM, 0} // struct ethtool_value
	if on {
		value.data = 1
	}
	request := struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("transmit offload of %s: %w", name, errno)
	}
	return nil
}

// undo ends what finish did, after the link is gone.
func (i IPIP) undo(ns netns.NsHandle) error {
	if i.Port == 0 {
		return nil
	}
	return rtnl.InNetns(ns, func() error { return unlisten(i.Port, i.Local) })
}
