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
	ns := c.namespaces[ep.Namespace]
	if ns == nil {
		ns = &namespace{name: ep.Namespace, labels: namespaceLabels(ep.Namespace, nil)}
	}
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
		case !t.active:
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
func (c *Compiler) reach(s *policy.Selector, to map[string]bool) bool {
	names, forced := forcedNames(s)
	for _, name := range names {
		ns := c.namespaces[name]
		if ns == nil {
			ns = &namespace{labels: namespaceLabels(name, nil)}
		}
		if matches(s, ns.labels) {
			to[name] = true
		}
	}
	if forced {
		return true
	}
	// The name of one that is not known is none that the selector could have in mind: of NotIn all are, but those.
	if matches(s, []label{{key: policy.NameLabel, value: "\x00"}}) {
		return false
	}
	for name, ns := range c.namespaces {
		if matches(s, ns.labels) {
			to[name] = true
		}
	}
	return true
}

// forcedNames are the names of which a selector demands one, if it does.
func forcedNames(s *policy.Selector) (names []string, forced bool) {
	if name, ok := s.MatchLabels[policy.NameLabel]; ok {
		return []string{name}, true
	}
	for _, r := range s.MatchExpressions {
		if r.Key == policy.NameLabel && r.Operator == policy.In {
			return r.Values, true
		}
	}
	return nil, false
}
