package policy

import (
	"fmt"
	"net/netip"
	"strings"
)

// Party is one end of a connection.
type Party struct {
	Endpoint *Identity  // nil: an address that is no endpoint's, outside
	Addr     netip.Addr // invalid: not known, and in no block
}

// Target is what a new connection goes to.
type Target struct {
	Protocol Protocol // empty: a protocol without ports, as ICMP
	Port     uint16
}

func (t Target) String() string {
	if t.Protocol == "" {
		return "icmp"
	}
	return fmt.Sprintf("%d/%s", t.Port, strings.ToLower(string(t.Protocol)))
}

// Verdict is whether a new connection may be, and why.
type Verdict struct {
	Allowed bool
	Self    bool // an endpoint always reaches itself
	Egress  Side // of who connects
	Ingress Side // of whom it connects to
}

// Side is what the policies of one end say.
type Side struct {
	Isolated []string // keys of the policies that isolate it, and "policy-default"; none: it may do all
	Allows   []Grant  // what allows the connection nevertheless
}

// Grant is a rule that allows a connection.
type Grant struct {
	Policy string // its key
	Field  string // as spec.ingress[0]
}

// Allowed says whether the side lets the connection be.
func (s Side) Allowed() bool { return len(s.Isolated) == 0 || len(s.Allows) > 0 }

// ByDefault is what isolates an endpoint that no policy need select.
const ByDefault = "policy-default"

// Explain reads policies as the API's text has it, rule by rule, and says whether a new connection from one to another may be.
func Explain(policies []Policy, namespaces map[string]Namespace, network Default, from, to Party, port Target) Verdict {
	if from.Endpoint != nil && from.Endpoint == to.Endpoint || from.Addr.IsValid() && from.Addr == to.Addr {
		return Verdict{Allowed: true, Self: true}
	}
	var v Verdict
	for _, p := range policies {
		if from.Endpoint != nil && p.Isolates(Egress) && p.Selects(*from.Endpoint) {
			v.Egress.Isolated = append(v.Egress.Isolated, p.Key())
			for i, r := range p.Spec.Egress {
				if anyPort(r.Ports, port, to.Endpoint) && anyPeer(r.To, p.Namespace, namespaces, to) {
					v.Egress.Allows = append(v.Egress.Allows, Grant{p.Key(), fmt.Sprintf("spec.egress[%d]", i)})
				}
			}
		}
		if to.Endpoint != nil && p.Isolates(Ingress) && p.Selects(*to.Endpoint) {
			v.Ingress.Isolated = append(v.Ingress.Isolated, p.Key())
			for i, r := range p.Spec.Ingress {
				if anyPort(r.Ports, port, to.Endpoint) && anyPeer(r.From, p.Namespace, namespaces, from) {
					v.Ingress.Allows = append(v.Ingress.Allows, Grant{p.Key(), fmt.Sprintf("spec.ingress[%d]", i)})
				}
			}
		}
	}
	isolate(&v.Egress, from.Endpoint, namespaces, network)
	isolate(&v.Ingress, to.Endpoint, namespaces, network)
	v.Allowed = v.Egress.Allowed() && v.Ingress.Allowed()
	return v
}

// isolate adds what a default of deny isolates: it is a policy of the namespace that selects all, and allows nothing.
func isolate(s *Side, e *Identity, namespaces map[string]Namespace, network Default) {
	if e != nil && DefaultOf(namespaces, network, e.Namespace) == Deny {
		s.Isolated = append(s.Isolated, ByDefault)
	}
}

// anyPort says whether ports, none of which are all, let a connection to target be, at an endpoint that may name ports.
func anyPort(ports []Port, t Target, at *Identity) bool {
	for _, p := range ports {
		if p.Protocol != t.Protocol {
			continue
		}
		switch {
		case p.Name != "":
			if at != nil && names(*at, p, t.Port) {
				return true
			}
		case p.Port == 0, p.Port == t.Port, p.Port < t.Port && t.Port <= p.EndPort:
			return true
		}
	}
	return len(ports) == 0
}

func names(at Identity, p Port, number uint16) bool {
	for _, n := range at.Ports {
		if n.Name == p.Name && n.Protocol == p.Protocol && n.Port == number {
			return true
		}
	}
	return false
}

// anyPeer says whether peers, none of which are everybody, mean who.
func anyPeer(peers []Peer, own string, namespaces map[string]Namespace, who Party) bool {
	for _, p := range peers {
		switch {
		case p.IPBlock != nil:
			if p.IPBlock.Contains(who.Addr) {
				return true
			}
		case who.Endpoint == nil:
		case p.NamespaceSelector == nil && who.Endpoint.Namespace != own:
		case p.NamespaceSelector != nil && !p.NamespaceSelector.Matches(LabelsOf(namespaces, who.Endpoint.Namespace)):
		case p.PodSelector == nil || p.PodSelector.Matches(who.Endpoint.Labels):
			return true
		}
	}
	return len(peers) == 0
}

// Contains says whether an address is of the block. What is none is in no block.
func (b IPBlock) Contains(addr netip.Addr) bool {
	cidr, err := ParseCIDR(b.CIDR)
	if err != nil || !cidr.Contains(addr) {
		return false
	}
	for _, text := range b.Except {
		if except, err := ParseCIDR(text); err == nil && except.Contains(addr) {
			return false
		}
	}
	return true
}
