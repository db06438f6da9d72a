package main

import (
	"os"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// containerNetns is netnsID for a namespace that is not the host's. The skeleton refuses that one too, but only after
// ADD is done, and undoing an ADD of eth0 there would remove the host's.
func (p *plugin) containerNetns(path string) (string, error) {
	id, err := p.netnsID(path)
	if err != nil {
		return "", failf(types.ErrInvalidNetNS, "CNI_NETNS: %v", err)
	}
	if isHostNetns(path) {
		return "", failf(types.ErrInvalidNetNS, "CNI_NETNS: %s is the host's own network namespace", path)
	}
	return id, nil
}

// isHostNetns says whether path, whatever its name, leads to the namespace of this process or of init. What cannot be
// looked at is none that a container's interface could be removed from.
func isHostNetns(path string) bool {
	given, err := os.Stat(path)
	if err != nil {
		return false
	}
	for _, host := range []string{"/proc/self/ns/net", "/proc/1/ns/net"} {
		if info, err := os.Stat(host); err == nil && os.SameFile(info, given) {
			return true
		}
	}
	return false
}

// refuseInterface refuses a container that has the interface already, where reference plugins are run: they fail too, but to
// undo that they remove what has the name. A namespace that cannot be entered is left to them.
func refuseInterface(a attachment.Attachment) (err error) {
	if a.InProcess {
		return nil
	}
	_ = ns.WithNetNSPath(a.Netns, func(ns.NetNS) error {
		if _, missing := netlink.LinkByName(a.IfName); missing == nil {
			err = failf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: the container has an interface %s already", a.IfName)
		}
		return nil
	})
	return err
}

// netnsNow returns the path under which the attachment's namespace can be entered now, given what the runtime says
// it is, which may be nothing; "" if it is gone. What is in any other namespace is not this attachment's.
func (p *plugin) netnsNow(a attachment.Attachment, given string) string {
	if a.NetnsID == "" {
		if isHostNetns(given) {
			return ""
		}
		return given // the attachment was made up again: there is nothing to compare with
	}
	for _, path := range []string{given, a.Netns} {
		if path == "" {
			continue
		}
		if id, err := p.netnsID(path); err == nil && id == a.NetnsID {
			return path
		}
	}
	return ""
}
