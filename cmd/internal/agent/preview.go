package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/underlay"
	"github.com/overlayd/overlayd/subnet"
)

// Preview plans what an agent would install, for nobody to install it.
type Preview struct {
	planner *planner
	shield  Shield
}

// NewPreview looks at nothing but its arguments. Others are the host's other networks, by name.
func NewPreview(n subnet.Network, host Host, shield Shield, others map[string]subnet.Network) (Preview, error) {
	p, err := newPlanner(n, host)
	for _, name := range slices.Sorted(maps.Keys(others)) {
		if err == nil {
			p.beside = append(p.beside, beside{Name: name, Holding: Holding{Network: others[name]}})
		}
	}
	return Preview{p, shield}, err
}

// Wish is what the host's lease would say.
func (p Preview) Wish() subnet.Lease { return p.planner.lease("", "") }

// Plan lists commands for a shell that install, in their order, what the agent would where nothing of it is yet, and why
// some peers could not be reached. The host would own subnets; leases may hold its own.
func (p Preview) Plan(hostID string, subnets []netip.Prefix, leases []subnet.Record) (lines []string, problems []error) {
	own := p.planner.lease(hostID, "")
	for i, s := range subnets {
		own.Endpoints[i].Subnet = s
	}
	self := p.planner.self(own)
	objs := slices.Clone(self)
	var let []firewall.Element
	near := func(ip netip.Addr) bool {
		links, err := underlay.OnLink(netns.None(), []netip.Addr{ip})
		return err == nil && links[0] == p.planner.host.Index
	}
	for _, r := range leases {
		if r.Key() == own.Key() || reservation(r) {
			continue
		}
		_, more, err := p.planner.peer(own, r.Lease, near, false)
		if err == nil {
			more, err = p.planner.admit(more, self)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s of %s: %w", r.Key(), r.Host, err))
		}
		objs = append(objs, more...)
		let = append(let, p.planner.admitted(more, r.Lease)...)
	}
	slices.SortStableFunc(objs, func(a, b kernel.Object) int {
		if a.Kind() != b.Kind() {
			return int(a.Kind()) - int(b.Kind())
		}
		return strings.Compare(a.String(), b.String())
	})
	for _, o := range slices.Compact(objs) {
		lines = append(lines, o.String())
	}
	for _, s := range p.planner.params(p.planner.self(own)) {
		lines = append(lines, s.String())
	}
	lines = append(lines, firewall.Commands(p.planner.rules(p.shield, subnets))...)
	if p.shield.guards() {
		for _, e := range append(p.planner.admitted(self, subnet.Lease{Backend: p.planner.network.Backend.Type}), let...) {
			if line := e.String(); !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	return lines, problems
}
