package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/policy"
)

// TestExplain has a connection, what there is, and what is said of it.
func TestExplain(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr
	party := func(ns, app, ip string, ports ...policy.NamedPort) policy.Party {
		return policy.Party{Endpoint: &policy.Identity{Namespace: ns, Name: app, Labels: map[string]string{"app": app}, Ports: ports}, Addr: addr(ip)}
	}
	web := party("dev", "web", "10.0.1.1", policy.NamedPort{Name: "http", Port: 8080, Protocol: policy.TCP})
	db, other := party("dev", "db", "10.0.2.1"), party("prod", "web", "10.0.3.1")
	outside := policy.Party{Addr: addr("192.0.2.1")}
	namespaces := map[string]policy.Namespace{"prod": {Name: "prod", Labels: map[string]string{"env": "prod", policy.NameLabel: "lie"}}}
	app := func(name string) *policy.Selector {
		return &policy.Selector{MatchLabels: map[string]string{"app": name}}
	}
	of := func(spec policy.Spec) []policy.Policy {
		return []policy.Policy{{Namespace: "dev", Name: "p", Spec: spec}}
	}
	in := func(rules ...policy.IngressRule) []policy.Policy {
		return of(policy.Spec{PolicyTypes: []policy.Type{policy.Ingress}, Ingress: rules})
	}
	out := func(rules ...policy.EgressRule) []policy.Policy {
		return of(policy.Spec{PolicyTypes: []policy.Type{policy.Egress}, Egress: rules})
	}
	from := func(p policy.Peer) []policy.Policy { return in(policy.IngressRule{From: []policy.Peer{p}}) }
	ports := func(p ...policy.Port) []policy.Policy { return in(policy.IngressRule{Ports: p}) }
	tcp := func(n uint16) policy.Target { return policy.Target{Protocol: policy.TCP, Port: n} }
	block := func(cidr string, except ...string) policy.Peer {
		return policy.Peer{IPBlock: &policy.IPBlock{CIDR: cidr, Except: except}}
	}
	named := policy.Port{Protocol: policy.TCP, Name: "http"}
	for name, c := range map[string]struct {
		policies []policy.Policy
		network  policy.Default
		from, to policy.Party
		port     policy.Target
		want     string
	}{
		"no policy":                         {nil, "", db, web, tcp(80), "true egress[] ingress[]"},
		"deny":                              {in(), "", db, web, tcp(80), "false egress[] ingress[dev/p]"},
		"deny, from outside":                {in(), "", outside, web, tcp(80), "false egress[] ingress[dev/p]"},
		"deny, itself":                      {in(), policy.Deny, web, web, tcp(80), "true self"},
		"of another namespace":              {in(), "", web, other, tcp(80), "true egress[] ingress[]"},
		"allow all":                         {in(policy.IngressRule{}), "", outside, web, policy.Target{}, "true egress[] ingress[dev/p by spec.ingress[0]]"},
		"egress denied":                     {out(), "", web, outside, tcp(80), "false egress[dev/p] ingress[]"},
		"egress does not end what comes in": {out(), "", outside, web, tcp(80), "true egress[] ingress[]"},
		"the network denies":                {nil, policy.Deny, db, web, tcp(80), "false egress[policy-default] ingress[policy-default]"},
		"a default, and what allows":        {in(policy.IngressRule{}), policy.Deny, outside, web, tcp(80), "true egress[] ingress[dev/p by spec.ingress[0] policy-default]"},
		"own namespace":                     {from(policy.Peer{PodSelector: app("db")}), "", db, web, tcp(1), "true egress[] ingress[dev/p by spec.ingress[0]]"},
		"own namespace only":                {from(policy.Peer{PodSelector: new(policy.Selector)}), "", other, web, tcp(1), "false egress[] ingress[dev/p]"},
		"all namespaces, not outside":       {from(policy.Peer{NamespaceSelector: new(policy.Selector)}), "", outside, web, tcp(1), "false egress[] ingress[dev/p]"},
		"all namespaces":                    {from(policy.Peer{NamespaceSelector: new(policy.Selector)}), "", other, web, tcp(1), "true egress[] ingress[dev/p by spec.ingress[0]]"},
		"a namespace's label": {from(policy.Peer{NamespaceSelector: &policy.Selector{MatchLabels: map[string]string{"env": "prod"}}}), "", other, web, tcp(1),
			"true egress[] ingress[dev/p by spec.ingress[0]]"},
		"a namespace's name": {from(policy.Peer{NamespaceSelector: &policy.Selector{MatchLabels: map[string]string{policy.NameLabel: "prod"}}}), "", other, web, tcp(1),
			"true egress[] ingress[dev/p by spec.ingress[0]]"},
		"both, and one is not so": {from(policy.Peer{NamespaceSelector: new(policy.Selector), PodSelector: app("db")}), "", other, web, tcp(1), "false egress[] ingress[dev/p]"},
		"a block":                 {from(block("192.0.2.0/24")), "", outside, web, tcp(1), "true egress[] ingress[dev/p by spec.ingress[0]]"},
		"but not of it":           {from(block("192.0.2.0/24", "192.0.2.1/32")), "", outside, web, tcp(1), "false egress[] ingress[dev/p]"},
		"a container in a block":  {from(block("10.0.0.0/8")), "", db, web, tcp(1), "true egress[] ingress[dev/p by spec.ingress[0]]"},
		"no address":              {from(block("0.0.0.0/0")), "", policy.Party{Endpoint: db.Endpoint}, web, tcp(1), "false egress[] ingress[dev/p]"},
		"IPv6 is not of 0/0":      {from(block("0.0.0.0/0")), "", policy.Party{Addr: addr("2001:db8::1")}, web, tcp(1), "false egress[] ingress[dev/p]"},
		"a port":                  {ports(policy.Port{Protocol: policy.TCP, Port: 80}), "", db, web, tcp(80), "true egress[] ingress[dev/p by spec.ingress[0]]"},
		"another port":            {ports(policy.Port{Protocol: policy.TCP, Port: 80}), "", db, web, tcp(81), "false egress[] ingress[dev/p]"},
		"another protocol":        {ports(policy.Port{Protocol: policy.TCP, Port: 80}), "", db, web, policy.Target{Protocol: policy.UDP, Port: 80}, "false egress[] ingress[dev/p]"},
		"no port of ICMP's":       {ports(policy.Port{Protocol: policy.TCP}), "", db, web, policy.Target{}, "false egress[] ingress[dev/p]"},
		"a range's end":           {ports(policy.Port{Protocol: policy.TCP, Port: 80, EndPort: 82}), "", db, web, tcp(82), "true egress[] ingress[dev/p by spec.ingress[0]]"},
		"after a range":           {ports(policy.Port{Protocol: policy.TCP, Port: 80, EndPort: 82}), "", db, web, tcp(83), "false egress[] ingress[dev/p]"},
		"a name":                  {ports(named), "", db, web, tcp(8080), "true egress[] ingress[dev/p by spec.ingress[0]]"},
		"a name nobody has":       {ports(named), "", web, db, tcp(8080), "false egress[] ingress[dev/p]"},
		"a name of the peer's":    {out(policy.EgressRule{Ports: []policy.Port{named}}), "", db, web, tcp(8080), "true egress[dev/p by spec.egress[0]] ingress[]"},
		"a name in a block": {out(policy.EgressRule{Ports: []policy.Port{named}, To: []policy.Peer{block("10.0.1.0/24")}}), "", db, web, tcp(8080),
			"true egress[dev/p by spec.egress[0]] ingress[]"},
		"a name outside":           {out(policy.EgressRule{Ports: []policy.Port{named}}), "", db, outside, tcp(8080), "false egress[dev/p] ingress[]"},
		"ports of another rule":    {in(policy.IngressRule{From: []policy.Peer{block("1.0.0.0/8")}}, policy.IngressRule{Ports: []policy.Port{named}}), "", db, web, tcp(1), "false egress[] ingress[dev/p]"},
		"rules of a type not said": {of(policy.Spec{PolicyTypes: []policy.Type{policy.Egress}, Ingress: []policy.IngressRule{}}), "", db, web, tcp(1), "false egress[dev/p] ingress[]"},
	} {
		v := policy.Explain(c.policies, namespaces, c.network, c.from, c.to, c.port)
		got := fmt.Sprintf("%t egress%s ingress%s", v.Allowed, side(v.Egress), side(v.Ingress))
		if v.Self {
			got = fmt.Sprintf("%t self", v.Allowed)
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func side(s policy.Side) string {
	var all []string
	for _, name := range s.Isolated {
		for _, g := range s.Allows {
			if g.Policy == name {
				name += " by " + g.Field
			}
		}
		all = append(all, name)
	}
	return "[" + strings.Join(all, " ") + "]"
}

// TestOrder applies three policies in every order.
func TestOrder(t *testing.T) {
	t.Parallel()
	p := func(name string, rules ...policy.IngressRule) policy.Policy {
		return policy.Policy{Namespace: "dev", Name: name, Spec: policy.Spec{PolicyTypes: []policy.Type{policy.Ingress}, Ingress: rules}}
	}
	all := []policy.Policy{p("deny"), p("allow", policy.IngressRule{}), p("port", policy.IngressRule{Ports: []policy.Port{{Protocol: policy.TCP, Port: 80}}})}
	for _, o := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		v := policy.Explain([]policy.Policy{all[o[0]], all[o[1]], all[o[2]]}, nil, "", policy.Party{}, policy.Party{Endpoint: &policy.Identity{Namespace: "dev"}}, policy.Target{})
		if !v.Allowed || len(v.Ingress.Isolated) != 3 || len(v.Ingress.Allows) != 1 {
			t.Errorf("%v: %+v", o, v)
		}
	}
}
