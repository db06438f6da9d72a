package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/overlayd/overlayd/policy"
)

// known are the fields of an object, and who reads each.
type known map[string]func(path string, n *yaml.Node)

func ignore(string, *yaml.Node) {}

// step follows an alias, and counts what is read.
func (r *reader) step(n *yaml.Node) (*yaml.Node, bool) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	r.nodes++
	if r.nodes == maxNodes {
		r.fail(n.Line, "there is too much in it")
	}
	return n, r.nodes < maxNodes
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// peek is a field of an object that says what it is.
func (r *reader) peek(n *yaml.Node, field string) string {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == field {
			return n.Content[i+1].Value
		}
	}
	return ""
}

// fields has each field of an object read. Null is as if it was not there.
func (r *reader) fields(path string, n *yaml.Node, all known) {
	r.each(path, n, func(at, name string, n *yaml.Node) {
		read, ok := all[name]
		if !ok {
			r.fail(n.Line, "unknown field %q%s", at, near(name, all))
		} else if !isNull(n) {
			read(at, n)
		}
	})
}

// near is the field that was meant, perhaps.
func near(name string, all known) string {
	for _, field := range slices.Sorted(maps.Keys(all)) {
		if strings.EqualFold(field, name) || strings.EqualFold(field, name+"s") || strings.EqualFold(field+"s", name) {
			return fmt.Sprintf(" (did you mean %q?)", field)
		}
	}
	return ""
}

// each yields what a mapping holds, and takes note of the lines.
func (r *reader) each(path string, n *yaml.Node, yield func(at, name string, n *yaml.Node)) {
	n, ok := r.step(n)
	if !ok {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n.Line, "%s: Invalid value: an object is wanted", path)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := key.Value
		if path != "" {
			at = path + "." + key.Value
		}
		if seen[key.Value] {
			r.fail(key.Line, "duplicate field %q", at)
			continue
		}
		seen[key.Value], r.lines[at] = true, key.Line
		value, ok := r.step(value)
		if !ok {
			return
		}
		yield(at, key.Value, value)
	}
}

// items yields what a list holds.
func (r *reader) items(path string, n *yaml.Node, yield func(path string, n *yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		r.fail(n.Line, "%s: Invalid value: a list is wanted: does a \"-\" miss?", path)
		return
	}
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		item, ok := r.step(item)
		if !ok {
			return
		}
		r.lines[at] = item.Line
		yield(at, item)
	}
}

// line is that of a field or, where it is missing, of what it would be in.
func (r *reader) line(path string) int {
	for path != "" {
		if line, ok := r.lines[path]; ok {
			return line
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0
}

// text reads a string.
func (r *reader) text(path string, n *yaml.Node) string {
	switch {
	case isNull(n):
		return ""
	case n.Kind != yaml.ScalarNode:
		r.fail(n.Line, "%s: Invalid value: a string is wanted", path)
	case n.ShortTag() != "!!str" && n.ShortTag() != "!!timestamp":
		r.fail(n.Line, "%s: Invalid value: %.60s: a string is wanted: put it in quotes", path, n.Value)
	}
	return n.Value
}

func (r *reader) texts(path string, n *yaml.Node) (all []string) {
	r.items(path, n, func(path string, n *yaml.Node) { all = append(all, r.text(path, n)) })
	return all
}

func (r *reader) labels(path string, n *yaml.Node) map[string]string {
	labels := map[string]string{}
	r.each(path, n, func(at, key string, n *yaml.Node) { labels[key] = r.text(at, n) })
	return labels
}

// metadata reads what is ours of it. What a server adds is passed over, so that what kubectl get prints can be applied.
func (r *reader) metadata(path string, n *yaml.Node) (name, namespace string, labels, annotations map[string]string) {
	all := known{
		"name":        func(path string, n *yaml.Node) { name = r.text(path, n) },
		"namespace":   func(path string, n *yaml.Node) { namespace = r.text(path, n) },
		"labels":      func(path string, n *yaml.Node) { labels = r.labels(path, n) },
		"annotations": func(path string, n *yaml.Node) { annotations = r.labels(path, n) },
	}
	for _, field := range []string{
		"creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generateName", "generation",
		"managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid",
	} {
		all[field] = ignore
	}
	r.fields(path, n, all)
	return name, namespace, labels, annotations
}

func (r *reader) spec(path string, n *yaml.Node) (s policy.Spec) {
	r.fields(path, n, known{
		"podSelector": func(path string, n *yaml.Node) { s.PodSelector = r.selector(path, n) },
		"policyTypes": func(path string, n *yaml.Node) {
			for _, t := range r.texts(path, n) {
				s.PolicyTypes = append(s.PolicyTypes, policy.Type(t))
			}
		},
		"ingress": func(path string, n *yaml.Node) {
			r.items(path, n, func(path string, n *yaml.Node) {
				ports, peers := r.rule(path, "from", n)
				s.Ingress = append(s.Ingress, policy.IngressRule{Ports: ports, From: peers})
			})
		},
		"egress": func(path string, n *yaml.Node) {
			r.items(path, n, func(path string, n *yaml.Node) {
				ports, peers := r.rule(path, "to", n)
				s.Egress = append(s.Egress, policy.EgressRule{Ports: ports, To: peers})
			})
		},
	})
	return s
}

// rule reads a rule; null is one that allows all, as {} is.
func (r *reader) rule(path, field string, n *yaml.Node) (ports []policy.Port, peers []policy.Peer) {
	if isNull(n) {
		return nil, nil
	}
	r.fields(path, n, known{
		"ports": func(path string, n *yaml.Node) {
			r.items(path, n, func(path string, n *yaml.Node) { ports = append(ports, r.port(path, n)) })
		},
		field: func(path string, n *yaml.Node) {
			r.items(path, n, func(path string, n *yaml.Node) { peers = append(peers, r.peer(path, n)) })
		},
	})
	return ports, peers
}

func (r *reader) port(path string, n *yaml.Node) policy.Port {
	p := policy.Port{Protocol: policy.TCP}
	if isNull(n) {
		return p
	}
	r.fields(path, n, known{
		"protocol": func(path string, n *yaml.Node) { p.Protocol = policy.Protocol(r.text(path, n)) },
		"endPort":  func(path string, n *yaml.Node) { p.EndPort = r.number(path, n) },
		"port": func(path string, n *yaml.Node) {
			if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
				if p.Name = n.Value; p.Name == "" { // which would be all ports
					r.fail(n.Line, "%s: Invalid value: \"\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)", path)
				}
				return
			}
			p.Port = r.number(path, n)
		},
	})
	return p
}

// number reads that of a port.
func (r *reader) number(path string, n *yaml.Node) uint16 {
	i, err := strconv.ParseInt(n.Value, 0, 64)
	switch {
	case n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil:
		r.fail(n.Line, "%s: Invalid value: %.60q: a number is wanted", path, n.Value)
	case i < 1 || i > 65535:
		r.fail(n.Line, "%s: Invalid value: %d: must be between 1 and 65535, inclusive", path, i)
	}
	return uint16(i)
}

func (r *reader) peer(path string, n *yaml.Node) (p policy.Peer) {
	if isNull(n) {
		return p
	}
	r.fields(path, n, known{
		"podSelector":       func(path string, n *yaml.Node) { s := r.selector(path, n); p.PodSelector = &s },
		"namespaceSelector": func(path string, n *yaml.Node) { s := r.selector(path, n); p.NamespaceSelector = &s },
		"ipBlock": func(path string, n *yaml.Node) {
			p.IPBlock = new(policy.IPBlock)
			r.fields(path, n, known{
				"cidr":   func(path string, n *yaml.Node) { p.IPBlock.CIDR = r.text(path, n) },
				"except": func(path string, n *yaml.Node) { p.IPBlock.Except = r.texts(path, n) },
			})
		},
	})
	return p
}

func (r *reader) selector(path string, n *yaml.Node) (s policy.Selector) {
	r.fields(path, n, known{
		"matchLabels": func(path string, n *yaml.Node) { s.MatchLabels = r.labels(path, n) },
		"matchExpressions": func(path string, n *yaml.Node) {
			r.items(path, n, func(path string, n *yaml.Node) {
				var e policy.Requirement
				r.fields(path, n, known{
					"key":      func(path string, n *yaml.Node) { e.Key = r.text(path, n) },
					"operator": func(path string, n *yaml.Node) { e.Operator = policy.Operator(r.text(path, n)) },
					"values":   func(path string, n *yaml.Node) { e.Values = r.texts(path, n) },
				})
				s.MatchExpressions = append(s.MatchExpressions, e)
			})
		},
	})
	return s
}

// canonical has the blocks of addresses written as they are meant, and warns where they were not.
func (r *reader) canonical(p *policy.Policy) {
	one := func(field string, text *string) {
		c, err := policy.ParseCIDR(*text)
		if err != nil {
			return
		}
		if warning := policy.WarnCIDR(*text); warning != "" {
			r.Warnings = append(r.Warnings, r.at(r.line(field))+r.object+field+": "+warning)
		}
		*text = c.String()
	}
	for field, b := range p.Blocks() {
		one(field+".cidr", &b.CIDR)
		for i := range b.Except {
			one(fmt.Sprintf("%s.except[%d]", field, i), &b.Except[i])
		}
	}
}
