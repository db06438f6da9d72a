package compile

import (
	"slices"

	"github.com/overlayd/overlayd/policy"
)

// Needs says whether a policy's peers could mean the endpoint: whether other hosts must hear of it, wherever the policy's own
// endpoints are.
func (c *Compiler) Needs(ep policy.Endpoint) bool {
	if len(c.policies) == 0 {
		return false
	}
	ns := &namespace{name: ep.Namespace, labels: c.labelsOf(ep.Namespace)}
	needed := false
	c.index.visit(ns, decode(nil, string(appendLabels(nil, ep.Labels))), func(t *term) {
		needed = needed || t.peers > 0
		for a := range t.names {
			needed = needed || a.names(ep)
		}
	})
	return needed
}

// names says whether an endpoint has the port that an allowance names, in its block if it has one.
func (a allowance) names(ep policy.Endpoint) bool {
	for _, p := range ep.Ports {
		if p.Name != a.name || protocol(p.Protocol) != a.ports.proto {
			continue
		}
		if a.block == nil {
			return true
		}
		for _, ip := range ep.IPs {
			if a.block.set.Contains(ip.Unmap()) {
				return true
			}
		}
	}
	return false
}

// Reach says which namespaces the peers of the local groups can be in: all, or those, sorted.
func (c *Compiler) Reach() (all bool, namespaces []string) {
	seen := map[string]bool{}
	for _, t := range c.terms {
		switch {
		case !t.active():
		case t.spaces == nil:
			seen[t.in] = true
		default:
			if !c.reach(t.spaces, seen) {
				return true, nil
			}
		}
	}
	for name := range seen {
		namespaces = append(namespaces, name)
	}
	slices.Sort(namespaces)
	return false, namespaces
}

// reach adds the namespaces that a selector selects; false: it could select any that nobody has described.
func (c *Compiler) reach(s selector, to map[string]bool) bool {
	for _, r := range s {
		if r.Key != policy.NameLabel || r.Operator != policy.In {
			continue
		}
		for _, name := range r.Values {
			if s.match(c.labelsOf(name)) {
				to[name] = true
			}
		}
		return true
	}
	// No selector has this name in mind.
	if s.match(namespaceLabels("\x00", nil)) {
		return false
	}
	for name, ns := range c.namespaces {
		if s.match(ns.labels) {
			to[name] = true
		}
	}
	return true
}

// labelsOf are the labels of a namespace, that need not be known.
func (c *Compiler) labelsOf(name string) []label {
	if ns := c.namespaces[name]; ns != nil {
		return ns.labels
	}
	return namespaceLabels(name, nil)
}
