package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/policy"
)

func TestValidateLabels(t *testing.T) {
	t.Parallel()
	many, long := map[string]string{}, map[string]string{}
	for i := range 10_000 {
		many[fmt.Sprint("l", i)] = "x"
	}
	for i := range 200 {
		long[fmt.Sprintf("l%d%s", i, strings.Repeat("x", 50))] = strings.Repeat("y", 63)
	}
	x := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct {
		labels map[string]string
		want   string
	}{
		{many, "10000 labels: at most 256 can be had"},
		{long, "at most 16384 can be had"},
		{map[string]string{"": "a"}, `label "": name part must be non-empty`},
		{map[string]string{"a b": ""}, `label "a b": name part must consist of`},
		{map[string]string{"-a": ""}, "name part must consist of"},
		{map[string]string{x(64): ""}, "name part must be no more than 63 bytes"},
		{map[string]string{"a/b/c": ""}, "a valid label key must consist of"},
		{map[string]string{"/c": ""}, "prefix part must be non-empty"},
		{map[string]string{"Example.com/c": ""}, "prefix part a lowercase RFC 1123 subdomain"},
		{map[string]string{"example.com/": ""}, "name part must be non-empty"},
		{map[string]string{x(254) + "/c": ""}, "prefix part must be no more than 253 bytes"},
		{map[string]string{"a": x(64)}, `label a: value "xxxx`},
		{map[string]string{"a": "-b"}, "a valid label must be an empty string or"},
		{map[string]string{"a": "b\nc"}, `value "b\nc"`},
		{map[string]string{"a": "b\n"}, `value "b\n"`},
		{map[string]string{"a\n": "b"}, `label "a\n"`},
		{map[string]string{"example.com/app": x(63), x(63): "", "A_.-z": "9"}, ""},
		{nil, ""},
	} {
		err := policy.ValidateLabels(c.labels)
		if c.want == "" && err == nil {
			continue
		}
		if err == nil || c.want == "" || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

func TestValidateNamespace(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "A", "a.b", "a/b", "-a", "a-", "a_b", "a\n", strings.Repeat("a", 64), "é"} {
		if err := policy.ValidateNamespace(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, good := range []string{"a", "1", "kube-system", strings.Repeat("a", 63)} {
		if err := policy.ValidateNamespace(good); err != nil {
			t.Error(err)
		}
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	is := func(key string, o policy.Operator, values ...string) policy.Selector {
		return policy.Selector{MatchExpressions: []policy.Requirement{{Key: key, Operator: o, Values: values}}}
	}
	labels := map[string]string{"app": "web", "empty": ""}
	for _, c := range []struct {
		s          policy.Selector
		here, none bool // with labels, with none
	}{
		{policy.Selector{}, true, true},
		{policy.Selector{MatchLabels: map[string]string{"app": "web"}}, true, false},
		{policy.Selector{MatchLabels: map[string]string{"app": "db"}}, false, false},
		{policy.Selector{MatchLabels: map[string]string{"empty": ""}}, true, false},
		{policy.Selector{MatchLabels: map[string]string{"app": "web", "x": "y"}}, false, false},
		{is("app", policy.In, "db", "web"), true, false},
		{is("app", policy.In, "db"), false, false},
		{is("x", policy.In, ""), false, false},
		{is("app", policy.NotIn, "web"), false, true},
		{is("app", policy.NotIn, "db"), true, true},
		{is("x", policy.NotIn, ""), true, true},
		{is("empty", policy.NotIn, ""), false, true},
		{is("app", policy.Exists), true, false},
		{is("app", policy.DoesNotExist), false, true},
		{is("app", "Else"), false, false},
		{policy.Selector{MatchLabels: map[string]string{"app": "web"}, MatchExpressions: is("empty", policy.DoesNotExist).MatchExpressions}, false, false},
	} {
		if got, none := c.s.Matches(labels), c.s.Matches(nil); got != c.here || none != c.none {
			t.Errorf("%+v: %t %t", c.s, got, none)
		}
	}
}

func TestParsePolicy(t *testing.T) {
	t.Parallel()
	const good = `{"namespace":"dev","name":"a","spec":{"podSelector":{},"policyTypes":["Ingress"],"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8"}}]}]}}`
	for name, c := range map[string]struct{ key, value, want string }{
		"nothing":          {"dev/a", "", "EOF"},
		"garbage":          {"dev/a", "\xff\x00{", "invalid character"},
		"null":             {"dev/a", "null", "it calls itself"},
		"an unknown field": {"dev/a", strings.Replace(good, `"spec"`, `"but":1,"spec"`, 1), `unknown field "but"`},
		"below":            {"dev/a", strings.Replace(good, `"ipBlock"`, `"fqdn":"x","ipBlock"`, 1), `unknown field "fqdn"`},
		"more":             {"dev/a", good + "{}", "something follows"},
		"another's key":    {"dev/b", good, `it calls itself "dev/a"`},
		"another's slash":  {"dev/a/b", strings.Replace(good, `"a"`, `"a/b"`, 1), "metadata.name"},
		"another's space":  {"dev/x/a", strings.Replace(good, `"dev"`, `"dev/x"`, 1), "metadata.namespace"},
		"no types":         {"dev/a", strings.Replace(good, `["Ingress"]`, `[]`, 1), "spec.policyTypes: Required value"},
		"other types":      {"dev/a", strings.Replace(good, `["Ingress"]`, `["All"]`, 1), "Unsupported value"},
		"no peer":          {"dev/a", strings.Replace(good, `{"ipBlock":{"cidr":"10.0.0.0/8"}}`, `{}`, 1), "must specify a peer"},
		"host bits":        {"dev/a", strings.Replace(good, `10.0.0.0`, `10.0.0.1`, 1), "ambiguous"},
		"port 65536":       {"dev/a", strings.Replace(good, `"from"`, `"ports":[{"protocol":"TCP","port":65536}],"from"`, 1), "65536"},
		"name and number":  {"dev/a", strings.Replace(good, `"from"`, `"ports":[{"protocol":"TCP","port":1,"name":"a"}],"from"`, 1), "may not have a number too"},
		"1 MB":             {"dev/a", strings.Replace(good, `"spec"`, strings.Repeat(" ", policy.MaxValue)+`"spec"`, 1), "it can have 1048576"},
	} {
		if _, err := policy.ParsePolicy(c.key, []byte(c.value)); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if p, err := policy.ParsePolicy("dev/a", []byte(good)); err != nil || p.Key() != "dev/a" {
		t.Errorf("%+v %v", p, err)
	}
	for _, bad := range []string{`{"name":"b"}`, `{"name":"a","default":"maybe"}`, `{"name":"a","labels":{"a b":""}}`, `{"name":"a","x":1}`, ``} {
		if _, err := policy.ParseNamespace("a", []byte(bad)); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestParseCIDR(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "010.0.0.0/8", "fe80::%eth0/64", "fd00::/129", "10.0.0.0/08", "a/8"} {
		if p, err := policy.ParseCIDR(bad); err == nil {
			t.Errorf("%q is %s", bad, p)
		}
	}
	for text, want := range map[string]string{
		"10.0.0.0/8": "", "::/0": "", "0.0.0.0/0": "", "10.0.0.1/32": "",
		"10.0.0.1/8":            "10.0.0.0/8",
		"::ffff:10.0.0.0/104":   "10.0.0.0/8",
		"::ffff:10.0.0.1/128":   "10.0.0.1/32",
		"::ffff:0:0/95":         "::fffe:0:0/95",
		"FD00:0::/64":           "fd00::/64",
		"fd00::1/64":            "fd00::/64",
		"2001:db8:0:0:0:0::/48": "2001:db8::/48",
	} {
		p, err := policy.ParseCIDR(text)
		if warned := policy.WarnCIDR(text); err != nil || want != "" && p != netip.MustParsePrefix(want) || (want == "") != (warned == "") {
			t.Errorf("%s: %s %v, %q", text, p, err, warned)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(`{"namespace":"dev","name":"a","spec":{"podSelector":{"matchExpressions":[{"key":"a","operator":"In","values":["b"]}]},"policyTypes":["Ingress"],"ingress":[{"ports":[{"protocol":"TCP","port":1,"endPort":2}],"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}]}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := policy.ParsePolicy("dev/a", data)
		if err != nil {
			return
		}
		id := policy.Identity{Namespace: "dev", Labels: map[string]string{"a": "b"}}
		addr := netip.MustParseAddr("10.1.2.3")
		policy.Explain([]policy.Policy{p}, nil, "", policy.Party{Endpoint: &id}, policy.Party{Endpoint: &policy.Identity{Namespace: "dev"}, Addr: addr}, policy.Target{Protocol: policy.TCP, Port: 1})
		if bad := p.Validate(); len(bad) > 0 {
			t.Error(bad)
		}
	})
}

// TestMaxPairs is that no policy of a size that etcd takes can fill the memory of hosts.
func TestMaxPairs(t *testing.T) {
	t.Parallel()
	p := policy.Policy{Namespace: "a", Name: "p"}
	for i := range 2 {
		if bad := p.Validate(); len(bad) > 0 {
			t.Errorf("with %d rules: %v", len(p.Spec.Ingress), bad)
		}
		r := policy.IngressRule{Ports: make([]policy.Port, 1<<8), From: make([]policy.Peer, 1<<8-i)}
		for n := range r.Ports {
			r.Ports[n] = policy.Port{Protocol: policy.TCP, Port: uint16(n + 1)}
		}
		for n := range r.From {
			r.From[n] = policy.Peer{PodSelector: &policy.Selector{}}
		}
		p.Spec.Ingress = append(p.Spec.Ingress, r)
	}
	bad := p.Validate()
	if len(bad) != 1 || bad[0].Field != "spec" {
		t.Errorf("with %d rules: %v", len(p.Spec.Ingress), bad)
	}
}
