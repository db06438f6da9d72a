package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// The types are those of networking.k8s.io/v1 once more, and what follows reads them as its documentation does, one policy after
// the other: slow, and with nothing in common with what is under test.

type netpol struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Spec     struct {
		PodSelector     selector
		PolicyTypes     []string
		Ingress, Egress []rule
	}
	Items []netpol // of a List
}

type rule struct {
	Ports    []portSpec
	From, To []peer
}

type portSpec struct {
	Protocol string
	Port     any // number, name or nothing
	EndPort  int
}

type peer struct {
	PodSelector, NamespaceSelector *selector
	IPBlock                        *struct {
		CIDR   string
		Except []string
	}
}

type selector struct {
	MatchLabels      map[string]string
	MatchExpressions []struct {
		Key, Operator string
		Values        []string
	}
}

func (s selector) matches(labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if have, there := labels[k]; !there || have != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		have, there := labels[e.Key]
		in := there && slices.Contains(e.Values, have)
		if map[string]bool{"In": !in, "NotIn": in, "Exists": !there, "DoesNotExist": there}[e.Operator] {
			return false
		}
	}
	return true
}

// world is what the policies are about, as the tests have made it.
type world struct {
	policies   map[string]netpol            // by namespace/name
	namespaces map[string]map[string]string // labels that somebody has given
	deny       map[string]bool              // namespaces whose default is deny
}

func newWorld() *world {
	return &world{map[string]netpol{}, map[string]map[string]string{}, map[string]bool{}}
}

// read puts the policies of a document into the world, those without a namespace into ns.
func (w *world) read(ns, document string) error {
	for _, d := range strings.Split(strings.ReplaceAll(document, "\r\n", "\n"), "\n---") {
		var p netpol
		if err := yaml.Unmarshal([]byte(d), &p); err != nil {
			return fmt.Errorf("%w in\n%s", err, d)
		}
		for _, p := range append(p.Items, p) {
			if p.Kind != "NetworkPolicy" {
				continue
			}
			if p.Metadata.Namespace == "" {
				p.Metadata.Namespace = ns
			}
			w.policies[p.Metadata.Namespace+"/"+p.Metadata.Name] = p
		}
	}
	return nil
}

// allows tells whether something new may pass: the sender's side allows it, and the receiver's.
func (w *world) allows(p probe) bool {
	return p.from == p.to || w.side(p, true) && w.side(p, false)
}

// side is one side's verdict: that of all policies that select the container, if any does.
func (w *world) side(p probe, ingress bool) bool {
	self, other, direction := p.from, p.to, "Egress"
	if ingress {
		self, other, direction = p.to, p.from, "Ingress"
	}
	if self.ns == "" {
		return true // nobody's: outside
	}
	isolated := w.deny[self.ns]
	for _, pol := range w.policies {
		if pol.Metadata.Namespace != self.ns || !pol.Spec.PodSelector.matches(self.labels) || !slices.Contains(pol.types(), direction) {
			continue
		}
		isolated = true
		rules := pol.Spec.Egress
		if ingress {
			rules = pol.Spec.Ingress
		}
		for _, r := range rules {
			if w.peers(self.ns, append(slices.Clone(r.From), r.To...), other, p.family) && r.ports(p) {
				return true
			}
		}
	}
	return !isolated
}

// types are the directions that a policy isolates: ingress always, egress if it has rules of it, unless it says.
func (p netpol) types() []string {
	switch {
	case len(p.Spec.PolicyTypes) > 0:
		return p.Spec.PolicyTypes
	case len(p.Spec.Egress) > 0:
		return []string{"Ingress", "Egress"}
	}
	return []string{"Ingress"}
}

func (w *world) peers(ns string, peers []peer, other *pod, family int) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p peer) bool {
		if p.IPBlock != nil {
			in := func(cidr string) bool { return netip.MustParsePrefix(cidr).Masked().Contains(other.addrs[family]) }
			return in(p.IPBlock.CIDR) && !slices.ContainsFunc(p.IPBlock.Except, in)
		}
		if other.ns == "" {
			return false
		}
		if p.NamespaceSelector == nil {
			if other.ns != ns {
				return false
			}
		} else if !p.NamespaceSelector.matches(w.labelsOf(other.ns)) {
			return false
		}
		return p.PodSelector == nil || p.PodSelector.matches(other.labels)
	})
}

// labelsOf are the labels of a namespace, with the one that each has.
func (w *world) labelsOf(ns string) map[string]string {
	labels := map[string]string{"kubernetes.io/metadata.name": ns}
	maps.Copy(labels, w.namespaces[ns])
	return labels
}

func (r rule) ports(p probe) bool {
	return len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(s portSpec) bool {
		proto := strings.ToLower(s.Protocol)
		if proto == "" {
			proto = "tcp"
		}
		if proto != p.proto {
			return false
		}
		switch port := s.Port.(type) {
		case nil:
			return true
		case string:
			return slices.Contains(p.to.ports, namedPort{port, p.port, p.proto})
		case float64:
			return int(p.port) >= int(port) && int(p.port) <= max(int(port), s.EndPort)
		}
		return false
	})
}
