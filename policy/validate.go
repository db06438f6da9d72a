package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Problem is what the API server would not take, in its words.
type Problem struct {
	Field string // as spec.ingress[0].from[1].ipBlock.cidr
	Text  string
}

func (p Problem) Error() string { return p.Field + ": " + p.Text }

// MaxPairs is how many peers, each with each port of its rule, a policy can name in both directions together. Hosts have one element
// in their kernels for each, at least: of a value of 1 MB that is all peers and ports there could be 10⁸.
const MaxPairs = 1 << 16

// pairs is how many peers with ports p names.
func (p Policy) pairs() (n int) {
	for _, r := range p.Spec.Ingress {
		n += max(1, len(r.From)) * max(1, len(r.Ports))
	}
	for _, r := range p.Spec.Egress {
		n += max(1, len(r.To)) * max(1, len(r.Ports))
	}
	return n
}

// Validate returns all that the API server would not take, and more than [MaxPairs], in the order of the fields. Numbers of ports
// are within their range by their type; that one is missing where 0 stands only a reader of files sees.
func (p Policy) Validate() []Problem {
	v := new(problems)
	if bad := badSubdomain(p.Name); p.Name == "" {
		v.add("metadata.name", "Required value: name or generateName is required")
	} else if bad != "" {
		v.invalid("metadata.name", p.Name, bad)
	}
	if bad := badDNSLabel(p.Namespace); bad != "" {
		v.invalid("metadata.namespace", p.Namespace, bad)
	}
	if n := p.pairs(); n > MaxPairs {
		v.add("spec", fmt.Sprintf("Too long: %d peers with each port of their rules: at most %d can be had", n, MaxPairs))
	}
	v.selector("spec.podSelector", &p.Spec.PodSelector)
	for i, r := range p.Spec.Ingress {
		v.rule(fmt.Sprintf("spec.ingress[%d]", i), "from", r.Ports, r.From)
	}
	for i, r := range p.Spec.Egress {
		v.rule(fmt.Sprintf("spec.egress[%d]", i), "to", r.Ports, r.To)
	}
	if len(p.Spec.PolicyTypes) > 2 {
		v.add("spec.policyTypes", fmt.Sprintf("Invalid value: %q: may not specify more than two policyTypes", p.Spec.PolicyTypes))
		return v.all
	}
	for i, t := range p.Spec.PolicyTypes {
		if t != Ingress && t != Egress {
			v.unsupported(fmt.Sprintf("spec.policyTypes[%d]", i), string(t), string(Ingress), string(Egress))
		}
	}
	return v.all
}

type problems struct{ all []Problem }

func (v *problems) add(field, text string) { v.all = append(v.all, Problem{field, text}) }

func (v *problems) invalid(field, value, why string) {
	v.add(field, fmt.Sprintf("Invalid value: %s: %s", brief(value), why))
}

func (v *problems) unsupported(field, value string, supported ...string) {
	text := fmt.Sprintf("Unsupported value: %s: supported values: ", brief(value))
	for i, s := range supported {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%q", s)
	}
	v.add(field, text)
}

func (v *problems) rule(field, peers string, ports []Port, all []Peer) {
	for i, p := range ports {
		v.port(fmt.Sprintf("%s.ports[%d]", field, i), p)
	}
	for i, p := range all {
		v.peer(fmt.Sprintf("%s.%s[%d]", field, peers, i), p)
	}
}

func (v *problems) port(field string, p Port) {
	if p.Protocol != TCP && p.Protocol != UDP && p.Protocol != SCTP {
		v.unsupported(field+".protocol", string(p.Protocol), string(SCTP), string(TCP), string(UDP))
	}
	if p.Name != "" {
		if bad := badPortName(p.Name); bad != "" {
			v.invalid(field+".port", p.Name, bad)
		}
		if p.Port != 0 {
			v.invalid(field+".port", p.Name, "may not have a number too")
		}
	}
	if p.EndPort == 0 {
		return
	}
	why := ""
	switch {
	case p.Name != "":
		why = "may not be specified when `port` is non-numeric"
	case p.Port == 0:
		why = "may not be specified when `port` is not specified"
	case p.EndPort < p.Port:
		why = "must be greater than or equal to `port`"
	default:
		return
	}
	v.add(field+".endPort", fmt.Sprintf("Invalid value: %d: %s", p.EndPort, why))
}

func (v *problems) peer(field string, p Peer) {
	v.selector(field+".podSelector", p.PodSelector)
	v.selector(field+".namespaceSelector", p.NamespaceSelector)
	if p.IPBlock != nil {
		v.block(field+".ipBlock", *p.IPBlock)
	}
	switch selects := p.PodSelector != nil || p.NamespaceSelector != nil; {
	case !selects && p.IPBlock == nil:
		v.add(field, "Required value: must specify a peer")
	case selects && p.IPBlock != nil:
		v.add(field, "Forbidden: may not specify both ipBlock and another peer")
	}
}

func (v *problems) block(field string, b IPBlock) {
	if b.CIDR == "" {
		v.add(field+".cidr", "Required value")
		return
	}
	cidr, ok := v.cidr(field+".cidr", b.CIDR)
	for i, text := range b.Except {
		field := fmt.Sprintf("%s.except[%d]", field, i)
		except, fine := v.cidr(field, text)
		if ok && fine && (!cidr.Contains(except.Addr()) || except.Bits() <= cidr.Bits()) {
			v.invalid(field, text, "must be a strict subset of `cidr`")
		}
	}
}

func (v *problems) cidr(field, text string) (netip.Prefix, bool) {
	p, err := ParseCIDR(text)
	if err != nil {
		v.invalid(field, text, err.Error())
	}
	return p, err == nil
}

func (v *problems) selector(field string, s *Selector) {
	if s == nil {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		v.key(field+".matchLabels", key)
		if bad := badValue(s.MatchLabels[key]); bad != "" {
			v.invalid(field+".matchLabels", s.MatchLabels[key], bad)
		}
	}
	for i, r := range s.MatchExpressions {
		field := fmt.Sprintf("%s.matchExpressions[%d]", field, i)
		switch r.Operator {
		case In, NotIn:
			if len(r.Values) == 0 {
				v.add(field+".values", "Required value: must be specified when `operator` is 'In' or 'NotIn'")
			}
		case Exists, DoesNotExist:
			if len(r.Values) > 0 {
				v.add(field+".values", "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
			}
		default:
			v.invalid(field+".operator", string(r.Operator), "not a valid selector operator")
		}
		v.key(field+".key", r.Key)
		for j, value := range r.Values {
			if bad := badValue(value); bad != "" {
				v.invalid(fmt.Sprintf("%s.values[%d]", field, j), value, bad)
			}
		}
	}
}

func (v *problems) key(field, key string) {
	if bad := badKey(key); bad != "" {
		v.invalid(field, key, bad)
	}
}
