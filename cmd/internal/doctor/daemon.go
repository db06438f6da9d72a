package doctor

import (
	"context"
	"fmt"
	"slices"

	"github.com/overlayd/overlayd/cmd/internal/api"
)

// daemon asks whether overlayd is there and content.
func daemon(_ context.Context, h *Host) Finding {
	switch s := h.Status; {
	case s == nil:
		return fail(h.StatusErr.Error(), "start it: systemctl start overlayd; its log: journalctl -u overlayd")
	case !s.Ready:
		return fail("not ready: "+s.Stage, "what it waits for is named; its log: journalctl -u overlayd")
	case len(s.Problems) > 0:
		return warn(list(s.Problems), "its log: journalctl -u overlayd")
	case slices.ContainsFunc(s.Networks, func(n api.Network) bool { return !n.Ready }):
		n := s.Networks[slices.IndexFunc(s.Networks, func(n api.Network) bool { return !n.Ready })]
		return warn(fmt.Sprintf("network %s is not ready: %s", n.Name, n.Stage), "what it waits for is named; its log: journalctl -u overlayd")
	default:
		return ok("%s: %s", s.Version, s.Stage)
	}
}

// drift asks whether the kernel has what the daemon wants. The daemon compares them all the time, and heals.
func drift(_ context.Context, h *Host) Finding {
	if h.Status == nil {
		return noDaemon()
	}
	k := h.Status.Kernel
	for _, n := range h.Status.Networks {
		k.Failed = append(k.Failed[:len(k.Failed):len(k.Failed)], n.Kernel.Failed...)
		k.InStep, k.Pending = k.InStep && n.Kernel.InStep, k.Pending+n.Kernel.Pending
	}
	healed := 0
	for _, n := range k.Healed {
		healed += n
	}
	total := 0
	for _, n := range k.Objects {
		total += n
	}
	switch {
	case len(k.Failed) > 0:
		return fail(fmt.Sprintf("the kernel refuses %d objects: %s", len(k.Failed), list(k.Failed)),
			"the kernel's words say why; another program's link, route or address may stand in the way")
	case !k.InStep:
		return warn(fmt.Sprintf("%d objects are not there yet", k.Pending), "look again; if it stays so: journalctl -u overlayd")
	case healed > 0:
		return warn(fmt.Sprintf("all %d are there, but %d times one was gone and was put back", total, healed),
			"another program removes them: NetworkManager, systemd-networkd or a firewall script; tell it to leave overlay links alone")
	}
	return ok("%d, all in place", total)
}

// leases looks for keys that nobody can use, and for hosts that claim to be the same.
func leases(_ context.Context, h *Host) Finding {
	if h.EtcdErr != nil {
		return skip("not known without etcd")
	}
	if twins := duplicates(h.Listing.Records); len(twins) > 0 {
		return fail(list(twins), "give one of the hosts another address (--public-ip), or another MAC (stop overlayd there, delete its "+
			"vxlan links, start it), or another key (overlayctl wireguard rotate there); a lease that nobody uses: overlayctl leases release SUBNET")
	}
	if more := surplus(h.Listing.Records); len(more) > 0 {
		return warn(list(more), "a host moves to the one that is reserved for it, and gives the others back, when no container on it has "+
			"an address of them; one that nobody uses: overlayctl leases release SUBNET")
	}
	if len(h.Listing.Skipped) > 0 {
		var keys []string
		for _, k := range h.Listing.Skipped {
			keys = append(keys, fmt.Sprintf("%s (%v)", k.Key, k.Err))
		}
		return warn("keys that are no leases, and are passed over: "+list(keys), "delete those that nobody needs with etcdctl del")
	}
	if s := h.Status; s != nil && s.Lease.State != "held" {
		return fail(fmt.Sprintf("this host's is %s: %s", s.Lease.State, s.Lease.Reason), "overlayctl leases list shows who has what")
	}
	return ok("%d, no two of one host", len(h.Listing.Records))
}
