package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// policies asks whether policies are in force, and what of the network's are not as people wrote them.
func policies(_ context.Context, h *Host) Finding {
	if h.Status == nil {
		return noDaemon()
	}
	switch p := h.Status.Policy; {
	case p.Doubted != "":
		return fail(p.Doubted, `see "overlayctl policy list" for what etcd holds`)
	case p.Enforcing && !p.InStep:
		return fail("not in force as they should be: "+p.Error, "the kernel's words say why; it needs nf_tables and conntrack, which a host's kernel has with its extra modules")
	case len(p.Unreadable) > 0:
		return fail(fmt.Sprintf("cannot be read, and isolate what they could be about: %s", list(slices.Sorted(maps.Keys(p.Unreadable)))),
			"write them anew with overlayctl policy apply, or delete them")
	case p.Isolated > 0 && !p.Routed && !h.bridgesAreSeen():
		return fail("containers of one bridge reach each other past them: the kernel's module br_netfilter is not there", "modprobe br_netfilter")
	case p.Error != "":
		return warn(p.Error, "its log: journalctl -u overlayd")
	case len(p.Pending) > 0:
		return warn("containers wait for theirs, and get nothing through: "+list(p.Pending),
			"it is a matter of milliseconds; if it stays so: journalctl -u overlayd, and whether the record of the container is there (overlayctl cni list)")
	case p.Refused > 0:
		return warn(fmt.Sprintf("%d endpoints that other hosts announce do not count: they are not theirs", p.Refused),
			"which, tells the metric overlayd_policy_endpoints_refused_total by the reason; a host that has just claimed another subnet announces them anew")
	case !p.Enforcing:
		return ok("none in force")
	default:
		way := ""
		if p.Routed {
			way = "; br_netfilter is not there: containers of one bridge are routed to each other, which takes more of the CPU (modprobe br_netfilter)"
		}
		return ok("%d in force, %d of %d containers isolated; denied: %d packets in, %d out%s", p.Policies, p.Isolated, p.Local, p.Denied.Ingress, p.Denied.Egress, way)
	}
}

// bridgesAreSeen says whether the kernel can show nftables the traffic of bridges.
func (h *Host) bridgesAreSeen() bool {
	_, err := os.Stat(filepath.Join(h.Root, "proc/sys/net/bridge"))
	return !errors.Is(err, fs.ErrNotExist)
}
