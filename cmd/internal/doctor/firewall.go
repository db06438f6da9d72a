package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/cmd/internal/probe"
)

// bridgeNetfilter asks whether packets between containers of this host pass iptables.
func bridgeNetfilter(_ context.Context, h *Host) Finding {
	found := ok("off")
	for _, pool := range h.Network.Pools {
		name := "net.bridge.bridge-nf-call-ip6tables"
		if pool.Prefix.Addr().Is4() {
			name = "net.bridge.bridge-nf-call-iptables"
		}
		value, err := sysctl(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return ok("not loaded")
		case err != nil:
			return unknown(err)
		case value != "0":
			found = ok("on: packets between containers of this host pass iptables too, which costs some of their speed")
		}
	}
	return found
}

// containers asks by way of a container what the host itself can reach: no rule need be understood to know whether it
// drops what containers send and receive.
func containers(ctx context.Context, h *Host) Finding {
	if h.Status == nil {
		return noDaemon()
	}
	var ways []probe.Way
	for _, p := range h.Status.Peers {
		ways = append(ways, probe.Ways(p)...)
	}
	found, err := probe.Contain(ctx, h.Status.Subnets, ways)
	if err != nil {
		return unknown(err)
	}
	lost := slices.SortedFunc(maps.Keys(found.Lost), netip.Prefix.Compare)
	if len(lost) > 0 {
		subnet, loss := lost[0], found.Lost[lost[0]]
		advice := strings.ReplaceAll(loss.Mend, "NETWORK", h.poolOf(subnet).String())
		if found.Asked == 0 {
			return warn("no other host answers, and what a container sends to one beside it through the host is lost: "+loss.Text, advice)
		}
		return fail(fmt.Sprintf("%d of %d subnets are reached by this host and not by containers on it, as %s: %s", len(lost), found.Asked, subnet, loss.Text), advice)
	}
	rules, err := probe.Shut(ctx, h.Status.Subnets)
	switch {
	case err != nil:
		return unknown(err)
	case len(rules) > 0:
		return fail("rules drop what containers of other hosts send to single ones here: "+list(rules),
			"Docker 28 and later makes them: docs/docker.md has how to keep it from that")
	case found.Asked == 0:
		return ok("no other host answers; what containers send is forwarded")
	}
	return ok("they reach what this host reaches: %d subnets of other hosts", found.Asked)
}

// poolOf is the range of the network that a subnet is of.
func (h *Host) poolOf(subnet netip.Prefix) netip.Prefix {
	for _, pool := range h.Network.Pools {
		if pool.Prefix.Overlaps(subnet) {
			return pool.Prefix
		}
	}
	return subnet
}
