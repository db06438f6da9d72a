package compile_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
)

// The cast of the cases: all are local, but those of b are elsewhere. out is the outside.
var cast = map[string]*compile.Endpoint{
	"a/web":  member("a/web", 1, "app=web", "web:80/TCP"),
	"a/web2": member("a/web2", 2, "app=web", "web:81/TCP"),
	"a/db":   member("a/db", 3, "app=db,example.com/tier=", "sql:5432/TCP"),
	"a/bare": member("a/bare", 4, "", ""),
	"b/web":  member("b/web", 17, "app=web", "web:8080/TCP,dns:53/UDP"),
	"b/db":   member("b/db", 18, "app=db", ""),
	"c/web":  member("c/web", 33, "app=web", ""),
}

func member(name string, n byte, labels, ports string) *compile.Endpoint {
	e := &compile.Endpoint{Local: name[0] != 'b'}
	e.Namespace, e.Name, _ = strings.Cut(name, "/")
	e.Labels = map[string]string{}
	for l := range strings.SplitSeq(labels, ",") {
		if k, v, ok := strings.Cut(l, "="); ok {
			e.Labels[k] = v
		}
	}
	for p := range strings.SplitSeq(ports, ",") {
		var port policy.NamedPort
		if name, rest, ok := strings.Cut(p, ":"); ok {
			port.Name = name
			fmt.Sscanf(rest, "%d/%s", &port.Port, &port.Protocol)
			e.Ports = append(e.Ports, port)
		}
	}
	e.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, n}), netip.AddrFrom16([16]byte{0: 0xfd, 15: n})}
	return e
}

// parsePolicies reads policies as namespace/name: spec.
func parsePolicies(t testing.TB, text string) map[string]policy.Policy {
	t.Helper()
	specs := map[string]policy.Spec{}
	if err := yaml.UnmarshalStrict([]byte(text), &specs); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	policies := map[string]policy.Policy{}
	for key, spec := range specs {
		p := policy.Policy{Spec: spec}
		p.Namespace, p.Name, _ = strings.Cut(key, "/")
		policies[key] = p
	}
	return policies
}

// parseFlow reads "a/web>a/db tcp/80", of which the second family is meant after a 6.
func parseFlow(t testing.TB, text string) flow {
	t.Helper()
	who, what, _ := strings.Cut(text, " ")
	family := 0
	if rest, ok := strings.CutSuffix(what, " v6"); ok {
		what, family = rest, 1
	}
	addr := func(name string) netip.Addr {
		if e := cast[name]; e != nil {
			return e.IPs[family]
		}
		if name == "out" {
			return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}[family]
		}
		return netip.MustParseAddr(name)
	}
	src, dst, _ := strings.Cut(who, ">")
	proto, port, _ := strings.Cut(what, "/")
	f := flow{src: addr(src), dst: addr(dst)}
	f.proto = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "gre": 47}[proto]
	if port != "" {
		fmt.Sscan(port, &f.port)
	}
	if f.proto == 0 {
		t.Fatalf("%q is no flow", text)
	}
	return f
}

// The cases are those of POLICY-CASES.md, by their numbers, that can be decided without a kernel. Each says what passes and what does
// not, and is asked of the compiler, of a model of a kernel that its changes went into, and of the naive evaluator.
func TestCases(t *testing.T) {
	t.Parallel()
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newTold()
			for key, e := range cast {
				w.c.SetEndpoint(key, e)
				w.setEndpoint(key, e)
			}
			w.namespaces["a"] = policy.Namespace{Labels: map[string]string{"env": "dev"}}
			w.namespaces["b"] = policy.Namespace{Labels: map[string]string{"env": "prod"}}
			for name, ns := range w.namespaces {
				w.c.SetNamespace(name, &ns)
			}
			w.def = test.def
			w.c.SetDefault(test.def)
			w.k.apply(t, w.c.Flush())
			w.policies = parsePolicies(t, test.policies)
			w.c.SetPolicies(w.policies, nil)
			w.k.apply(t, w.c.Flush())
			for want, lines := range map[bool]string{true: test.yes, false: test.no} {
				for line := range strings.SplitSeq(lines, ";") {
					if line = strings.TrimSpace(line); line != "" {
						w.ask(t, line, want)
					}
				}
			}
			for _, f := range flows() {
				if got, want := w.c.Judge(f.src, f.dst, f.proto, f.port), w.allowed(f.src, f.dst, f.proto, f.port); got != want {
					t.Errorf("%+v is judged %t, and is %t", f, got, want)
				}
			}
			w.checkFull(t)
		})
	}
}

func (w *told) ask(t *testing.T, line string, want bool) {
	t.Helper()
	f := parseFlow(t, line)
	judged, kernel := w.c.Judge(f.src, f.dst, f.proto, f.port), w.k.allowed(f.src, f.dst, f.proto, f.port)
	naive := w.allowed(f.src, f.dst, f.proto, f.port)
	if judged != want || kernel != want || naive != want {
		t.Errorf("%s: want %t, judged %t, in the kernel %t, by the text %t; %s\n%s",
			line, want, judged, kernel, naive, w.c.Why(f.src, f.dst, f.proto, f.port), w.k.text())
	}
}

// TestOrder applies three policies that overlap in each order, one by one, all at once, and takes others out in between.
func TestOrder(t *testing.T) {
	t.Parallel()
	policies := parsePolicies(t, `
a/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}
a/ports: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP, name: web}, {protocol: TCP, port: 80, endPort: 90}]}]}
a/peers: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.17/32}}]}], egress: [{to: [{namespaceSelector: {}}]}]}
`)
	keys := []string{"a/deny", "a/ports", "a/peers"}
	var want string
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		for gone := range 4 {
			w := newTold()
			for key, e := range cast {
				w.c.SetEndpoint(key, e)
			}
			for _, i := range order {
				w.c.SetPolicies(map[string]policy.Policy{keys[i]: policies[keys[i]]}, nil)
				w.k.apply(t, w.c.Flush())
				if gone < 3 && gone != i {
					w.c.SetPolicies(nil, []string{keys[gone]})
					w.k.apply(t, w.c.Flush())
				}
			}
			w.c.SetPolicies(policies, nil)
			w.k.apply(t, w.c.Flush())
			if want == "" {
				want = w.k.text()
			}
			if got := w.k.text(); got != want {
				t.Errorf("order %v: got\n%s\nwant\n%s", order, got, want)
			}
		}
	}
}
