package compile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
)

func TestReach(t *testing.T) {
	t.Parallel()
	for peers, want := range map[string]string{
		`{podSelector: {}}`:                               "a",
		`{ipBlock: {cidr: "::/0"}}`:                       "",
		`{namespaceSelector: {}}`:                         "all",
		`{namespaceSelector: {matchLabels: {env: prod}}}`: "b",
		`{namespaceSelector: {matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}}`:                                   "all",
		`{namespaceSelector: {matchExpressions: [{key: env, operator: Exists}]}}`:                                                  "b d",
		`{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: new}}}`:                                                   "new",
		`{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b, env: dev}}}`:                                           "",
		`{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [new, b]}]}}`:            "b new",
		`{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [b]}]}}`:              "all",
		`{namespaceSelector: {matchLabels: {env: prod}, matchExpressions: [{key: x, operator: DoesNotExist}]}}, {podSelector: {}}`: "a b",
	} {
		w := stage(t, fmt.Sprintf("a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [%s]}]}\n"+
			"e/far: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]}", peers))
		w.c.SetNamespace("b", &policy.Namespace{Labels: map[string]string{"env": "prod"}})
		w.c.SetNamespace("d", &policy.Namespace{Labels: map[string]string{"env": "dev"}})
		w.flush(t)
		all, namespaces := w.c.Reach()
		got := strings.Join(namespaces, " ")
		if all {
			got = "all"
		}
		if got != want {
			t.Errorf("%s reaches %q, not %q", peers, got, want)
		}
	}
	w := stage(t, `
a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]}
e/far: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]}`)
	w.c.SetPolicies(nil, []string{"a/p"})
	w.flush(t)
	if all, namespaces := w.c.Reach(); all || len(namespaces) > 0 {
		t.Error("nothing is isolated here any more, and somebody reached")
	}
	w = stage(t, `a/p: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: TCP, name: web}]}]}`)
	if all, _ := w.c.Reach(); !all {
		t.Error("whoever has a port of a name can be anywhere")
	}
}

func TestEnforcing(t *testing.T) {
	t.Parallel()
	c := compile.New()
	check := func(want bool) {
		t.Helper()
		if c.Flush(); c.Enforcing() != want {
			t.Errorf("enforcing is %t", !want)
		}
	}
	check(false)
	c.SetDefault(policy.Deny)
	check(true)
	c.SetDefault(policy.Allow)
	check(false)
	c.SetNamespace("a", &policy.Namespace{Default: policy.Deny})
	check(true)
	c.SetNamespace("a", &policy.Namespace{})
	check(false)
	c.SetPolicies(map[string]policy.Policy{"z/p": {Namespace: "z", Name: "p"}}, nil)
	check(true)
	c.SetPolicies(nil, []string{"z/p"})
	check(false)
}

func TestWhy(t *testing.T) {
	t.Parallel()
	w := stage(t, `
a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
a/q: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}`)
	w.c.SetNamespace("c", &policy.Namespace{Default: policy.Deny})
	w.flush(t)
	var got []string
	for _, line := range []string{"b/db>a/web tcp/80", "a/web>out udp/53 v6", "out>c/web icmp", "a/db>a/web gre", "a/db>a/bare sctp/7"} {
		f := parseFlow(t, line)
		got = append(got, w.c.Why(f.src, f.dst, f.proto, f.port))
	}
	want := []string{
		"b/db (10.0.0.18) to a/web (10.0.0.1), 80/tcp: ingress of a/web (10.0.0.1) is isolated by a/p, a/q, which do not allow it",
		"a/web (fd00::1) to 2001:db8::1 (no known endpoint), 53/udp: egress of a/web (fd00::1) is isolated by a/q, which does not allow it",
		"192.0.2.1 (no known endpoint) to c/web (10.0.0.33), icmp: ingress of c/web (10.0.0.33) is isolated by the default, which does not allow it",
		"a/db (10.0.0.3) to a/web (10.0.0.1), protocol 47: allowed",
		"a/db (10.0.0.3) to a/bare (10.0.0.4), 7/sctp: allowed",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "\n") }) {
		t.Error("not one line each")
	}
}

// TestThousandPolicies is that of one container, and a container with 10,000 labels beside it.
func TestThousandPolicies(t *testing.T) {
	t.Parallel()
	w := stage(t, "")
	policies := map[string]policy.Policy{}
	for i := range 1000 {
		p := policy.Policy{Namespace: "a", Name: fmt.Sprint("p", i), Spec: policy.Spec{PolicyTypes: []policy.Type{policy.Ingress}}}
		p.Spec.Ingress = []policy.IngressRule{{Ports: []policy.Port{{Protocol: policy.TCP, Port: uint16(1000 + i)}},
			From: []policy.Peer{{PodSelector: &policy.Selector{MatchLabels: map[string]string{fmt.Sprint("label", i): "yes"}}}}}}
		policies["a/"+p.Name] = p
	}
	w.c.SetPolicies(policies, nil)
	e := member("a/many", 99, "", "")
	for i := range 10000 {
		e.Labels[fmt.Sprint("label", i)] = "yes"
	}
	w.c.SetEndpoint("many", e)
	change := w.flush(t)
	if len(change.Make) != 1 {
		t.Errorf("%d groups are made", len(change.Make))
	}
	if !w.c.Judge(e.IPs[0], cast["a/web"].IPs[0], 6, 1999) || w.c.Judge(e.IPs[0], cast["a/web"].IPs[0], 6, 2000) {
		t.Error("the last policy does not count, or one more does")
	}
	w.c.SetPolicies(nil, []string{"a/p999"})
	w.flush(t)
	if w.c.Judge(e.IPs[0], cast["a/web"].IPs[0], 6, 1999) {
		t.Error("the last policy counts, and is gone")
	}
}
