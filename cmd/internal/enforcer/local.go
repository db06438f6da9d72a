package enforcer

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
)

// localKey is the compiler's for an endpoint of this host's; those of others have two slashes, and no colon in the first part.
func (l Local) key() string { return "local:" + l.Network + "/" + l.ContainerID + "/" + l.IfName }

func (l Local) equal(o Local) bool {
	return slices.Equal(l.IPs, o.IPs) && l.LinkLocal == o.LinkLocal && l.Identity.Namespace == o.Identity.Namespace && l.Name == o.Name &&
		maps.Equal(l.Labels, o.Labels) && slices.Equal(l.Ports, o.Ports)
}

// readLocals takes in which endpoints this host has.
func (e *Enforcer) readLocals() {
	all, err := e.cfg.Locals()
	if e.localErr = err; err != nil {
		return
	}
	if e.cfg.Beside != nil {
		all = slices.DeleteFunc(all, func(l Local) bool { return slices.ContainsFunc(l.IPs, e.beside) })
	}
	// Of two with one address the one counts that came last.
	slices.SortFunc(all, func(a, b Local) int { return a.Created.Compare(b.Created) })
	now := make(map[string]Local, len(all))
	for _, l := range all {
		now[l.key()] = l
		if was, ok := e.locals[l.key()]; !ok || !was.equal(l) {
			ep := compile.Endpoint{Endpoint: l.Endpoint.Endpoint, Local: true}
			if l.LinkLocal.IsValid() {
				ep.IPs = append(slices.Clone(ep.IPs), l.LinkLocal)
			}
			e.compiler.SetEndpoint(l.key(), &ep)
			e.needsChanged = true
		}
	}
	for key := range e.locals {
		if _, ok := now[key]; !ok {
			e.compiler.SetEndpoint(key, nil)
			e.needsChanged = true
		}
	}
	e.locals, e.localChanged, e.kernel.look = now, true, true
}

// beside says whether an address is another network's of this host's, whose containers nothing here is for.
func (e *Enforcer) beside(addr netip.Addr) bool {
	is, _ := e.cfg.Beside(addr)
	return is
}

// publish has etcd say of this host's endpoints what others need to know.
func (e *Enforcer) publish() {
	if !e.needsChanged || e.host == nil {
		return
	}
	e.needsChanged = false
	want, named := map[string]string{}, map[string]policy.Endpoint{}
	for _, l := range e.locals {
		ep, ok := e.publishable(l)
		if !ok {
			continue
		}
		key, value, err := ep.Publish(e.host.HostID)
		named[key] = ep
		if err == nil && (e.named || e.compiler.Enforcing() && e.compiler.Needs(l.Endpoint.Endpoint)) {
			want[key] = string(value)
		}
	}
	e.cfg.Names.Local(named)
	e.cfg.Writer.Set(e.host.LeaseID, want)
}

// publishable is what others may hear of an endpoint; ok is false if they may not. What it has besides the host's own subnets they
// would not believe.
func (e *Enforcer) publishable(l Local) (ep policy.Endpoint, ok bool) {
	ep = l.Endpoint.Endpoint
	ep.IPs = slices.DeleteFunc(slices.Clone(l.IPs), func(ip netip.Addr) bool { return !within(ip, e.host.Endpoints) })
	return ep, len(ep.IPs) > 0 && e.host.HostID != ""
}
