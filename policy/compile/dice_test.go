package compile_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
)

// dice throws policies, namespaces and endpoints that have much to do with each other.
type dice struct{ *rand.Rand }

func one[T any](d dice, of ...T) T { return of[d.IntN(len(of))] }

func several[T any](d dice, most int, f func() T) []T {
	var list []T
	for range d.IntN(most + 1) {
		list = append(list, f())
	}
	return list
}

func (d dice) namespace() string { return one(d, "a", "b", "c") }

func (d dice) labels() map[string]string {
	labels := map[string]string{}
	for range d.IntN(4) {
		labels[one(d, "app", "tier", "example.com/x")] = one(d, "1", "2", "")
	}
	return labels
}

func (d dice) selector() policy.Selector {
	s := policy.Selector{}
	if d.IntN(3) > 0 {
		s.MatchLabels = d.labels()
	}
	if d.IntN(3) == 0 {
		s.MatchExpressions = several(d, 2, func() policy.Requirement {
			r := policy.Requirement{Key: one(d, "app", "tier"), Operator: one(d, policy.In, policy.NotIn, policy.Exists, policy.DoesNotExist)}
			if r.Operator == policy.In || r.Operator == policy.NotIn {
				r.Values = append(several(d, 1, func() string { return one(d, "1", "2") }), "1")
			}
			return r
		})
	}
	return s
}

func (d dice) peer() policy.Peer {
	if d.IntN(3) == 0 {
		return policy.Peer{IPBlock: one(d,
			&policy.IPBlock{CIDR: "0.0.0.0/0"}, &policy.IPBlock{CIDR: "::/0", Except: []string{"fd00::/126"}},
			&policy.IPBlock{CIDR: "10.0.0.0/29", Except: []string{"10.0.0.2/32", "10.0.0.4/31"}}, &policy.IPBlock{CIDR: "10.0.0.3/32"},
			&policy.IPBlock{CIDR: "10.0.0.6/31"}, &policy.IPBlock{CIDR: "fd00::3/128"}, &policy.IPBlock{CIDR: "10.0.0.2/32"},
			&policy.IPBlock{CIDR: "10.0.0.3/32", Except: []string{"10.0.0.3/32"}},
		)}
	}
	var p policy.Peer
	if d.IntN(2) == 0 {
		s := d.selector()
		if d.IntN(3) == 0 {
			s = policy.Selector{MatchLabels: map[string]string{policy.NameLabel: d.namespace()}}
		}
		p.NamespaceSelector = &s
	}
	if s := d.selector(); p.NamespaceSelector == nil || d.IntN(2) == 0 {
		p.PodSelector = &s
	}
	return p
}

func (d dice) protocol() policy.Protocol {
	return one(d, policy.TCP, policy.TCP, policy.UDP, policy.SCTP)
}

func (d dice) port() policy.Port {
	p := policy.Port{Protocol: d.protocol()}
	switch d.IntN(5) {
	case 0:
		p.Name = one(d, "web", "dns")
	case 1:
		p.Port, p.EndPort = one(d, uint16(79), 80, 81), one(d, uint16(81), 82, 90)
	case 2:
	default:
		p.Port = one(d, uint16(80), 81)
	}
	return p
}

func (d dice) policy(ns, name string) policy.Policy {
	return policy.Policy{Namespace: ns, Name: name, Spec: policy.Spec{
		PodSelector: d.selector(),
		PolicyTypes: one(d, []policy.Type{policy.Ingress}, []policy.Type{policy.Egress}, []policy.Type{policy.Ingress, policy.Egress}),
		Ingress: several(d, 3, func() policy.IngressRule {
			return policy.IngressRule{Ports: several(d, 2, d.port), From: several(d, 2, d.peer)}
		}),
		Egress: several(d, 3, func() policy.EgressRule {
			return policy.EgressRule{Ports: several(d, 2, d.port), To: several(d, 2, d.peer)}
		}),
	}}
}

func (d dice) endpoint() *compile.Endpoint {
	n := d.IntN(8)
	e := &compile.Endpoint{Local: d.IntN(2) == 0}
	e.Identity = policy.Identity{Namespace: d.namespace(), Name: fmt.Sprint("n", n), Labels: d.labels()}
	e.Ports = several(d, 2, func() policy.NamedPort {
		return policy.NamedPort{Name: one(d, "web", "dns"), Port: one(d, uint16(80), 81), Protocol: d.protocol()}
	})
	e.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})}
	if d.IntN(2) == 0 {
		e.IPs = append(e.IPs, netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)}))
	}
	return e
}
