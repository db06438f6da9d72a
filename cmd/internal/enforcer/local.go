package enforcer

import (
	"maps"
	"net/netip"
	"slices"

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

// publish has etcd say of this host's endpoints what others need to know.
func (e *Enforcer) publish() {
	if !e.needsChanged || e.host == nil {
		return
	}
	e.needsChanged = false
	want := map[string]string{}
	if e.compiler.Enforcing() {
		for _, l := range e.locals {
			if key, value, ok := e.published(l); ok {
				want[key] = value
			}
		}
	}
	e.cfg.Writer.Set(e.host.LeaseID, want)
}

// published is what others are to hear of an endpoint; ok is false if they need not. What it has besides the host's own subnets
// they would not believe.
func (e *Enforcer) published(l Local) (key, value string, ok bool) {
	ips := slices.DeleteFunc(slices.Clone(l.IPs), func(ip netip.Addr) bool { return !within(ip, e.host.Endpoints) })
	if len(ips) == 0 || e.host.HostID == "" || !e.compiler.Needs(l.Endpoint.Endpoint) {
		return "", "", false
	}
	ep := l.Endpoint.Endpoint
	ep.IPs = ips
	key, text, err := ep.Publish(e.host.HostID)
	return key, string(text), err == nil
}
