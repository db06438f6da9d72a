package agent

import (
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/sysctl"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
)

// whole holds one whole thing of the kernel's: see task.Task.
type whole[T any] interface {
	Set(want []T)
	Status() task.Status
	Changed() <-chan struct{}
	Applied() <-chan struct{}
}

// rules are what the firewall is to have for the network. The subnets are this host's.
func (p *planner) rules(s Shield, local []netip.Prefix) (rules []firewall.Rule) {
	for _, pool := range p.network.Pools {
		rules = append(rules, firewall.Accept{Network: pool.Prefix})
		if s.Masquerade {
			rules = append(rules, firewall.Masquerade{Network: pool.Prefix})
		}
		for _, link := range p.host.Uplinks {
			// Where there may be no tunnel, what a peer itself sends comes with the address that it has on the underlay.
			peers := p.own.WantsNear() && link == p.host.Link || backend.ByOthers(p.network.Backend.Type)
			rules = append(rules, firewall.Uplink{Network: pool.Prefix, Link: link, Peers: peers})
		}
	}
	if links := p.secretLinks(); len(links) > 0 {
		rules = append(rules, firewall.Marked{Mark: backend.WireGuardMark, Links: join(links, "%q")})
	}
	if s.guards() {
		rules = append(rules, p.guard(s, local))
	}
	if s.Guard.Containers {
		rules = append(rules, firewall.Containers{Family: "bridge"}, firewall.Containers{Family: "inet"})
	}
	rules = append(rules, p.apart()...)
	return rules
}

// params are what the host needs to forward. Of links only the network's own are ours to decide, by which it receives, and by
// which it did before: one that had no IPv6 then would lose it with what it was given.
func (p *planner) params(objs []kernel.Object) (params []sysctl.Param) {
	for _, pool := range p.network.Pools {
		name := sysctl.Forwarding6
		if pool.Prefix.Addr().Is4() {
			name = sysctl.Forwarding4
		}
		params = append(params, sysctl.Param{Name: name, Value: "1"})
	}
	for _, o := range objs {
		if name := kernel.LinkName(o); name != "" {
			params = append(params, sysctl.Overlay(name, slices.ContainsFunc(objs, func(o kernel.Object) bool {
				a, ok := o.(kernel.Address)
				return ok && a.Link == name && a.Prefix.Addr().Is6()
			}))...)
		}
	}
	return params
}

// secretLinks are the names of the wireguard links that packets come by.
func (p *planner) secretLinks() (names []string) {
	b := p.others[backend.WireGuard]
	if b == nil {
		return nil
	}
	for _, pool := range p.network.Pools {
		for _, o := range b.Local(subnet.Endpoint{Subnet: pool.Prefix}) {
			if name := kernel.LinkName(o); name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// hold says what the host is to have as a whole.
func (a *Agent) hold() {
	a.cfg.Sysctls.Set(a.planner.params(append(a.planner.self(a.own.Lease), a.retirement.objs...)))
	local := append(a.own.Subnets(), a.former...)
	a.cfg.Firewall.Set(a.planner.rules(a.cfg.Shield, local))
	a.cfg.Commands.Serve(a.site())
}

// unheld counts the whole things that never were as they are wanted: what fails later takes nothing from containers that
// have been served before.
func (a *Agent) unheld() (n int) {
	for _, applied := range []<-chan struct{}{a.cfg.Sysctls.Applied(), a.cfg.Firewall.Applied(), a.cfg.Policy.Applied(), a.cfg.Commands.Applied()} {
		select {
		case <-applied:
		default:
			n++
		}
	}
	return n
}

// addWholes adds the whole things to the status of the other objects.
func (a *Agent) addWholes(k *api.Kernel) {
	add := func(kind string, s task.Status) {
		k.Objects[kind] = s.Objects
		if s.Healed > 0 {
			k.Healed[kind] = s.Healed
		}
		if s.Pending {
			k.Pending++
		}
		if s.Err != nil {
			k.Failed = append(k.Failed, kind+": "+s.Err.Error())
		}
		k.InStep = k.InStep && !s.Pending && s.Err == nil
	}
	add("firewall", a.cfg.Firewall.Status())
	elements := a.cfg.Elements.Status()
	elements.Err = nil // a problem of its own
	add("element", elements)
	add("sysctl", a.cfg.Sysctls.Status())
}
