package main

import (
	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// containerNetns is netnsID for a namespace that is not the host's. The skeleton refuses that one too, but only after
// ADD is done, and undoing an ADD of eth0 there would remove the host's.
func (p *plugin) containerNetns(path string) (string, error) {
	id, err := p.netnsID(path)
	if err != nil {
		return "", failf(types.ErrInvalidNetNS, "CNI_NETNS: %v", err)
	}
	if own, err := p.netnsID("/proc/self/ns/net"); err == nil && own == id {
		return "", failf(types.ErrInvalidNetNS, "CNI_NETNS: %s is the host's own network namespace", path)
	}
	return id, nil
}

// netnsNow returns the path under which the attachment's namespace can be entered now, given what the runtime says
// it is, which may be nothing; "" if it is gone. What is in any other namespace is not this attachment's.
func (p *plugin) netnsNow(a attachment.Attachment, given string) string {
	if a.NetnsID == "" {
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
