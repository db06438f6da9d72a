package manifest_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/manifest"
)

const head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec:\n"

func ingress(rule string) string { return head + "  ingress:\n  - " + rule + "\n" }

// TestRefused has every line of section I of POLICY-CASES.md, with the API server's words.
func TestRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"a peer with none of the three": {ingress("from: [{}]"), "f:6: NetworkPolicy \"a\": spec.ingress[0].from[0]: Required value: must specify a peer"},
		"a peer that is null":           {ingress("from: [null]"), "spec.ingress[0].from[0]: Required value: must specify a peer"},
		"ipBlock with a selector": {ingress("from:\n    - ipBlock: {cidr: 10.0.0.0/8}\n      podSelector: {}"),
			"f:7: NetworkPolicy \"a\": spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer"},
		"except that is the block": {ingress("from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]"),
			"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`"},
		"except outside":         {ingress("from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]"), "must be a strict subset of `cidr`"},
		"except of IPv6 in IPv4": {ingress("from: [{ipBlock: {cidr: 0.0.0.0/0, except: ['fd00::/64']}}]"), "must be a strict subset of `cidr`"},
		"a block that is none": {ingress("from: [{ipBlock: {cidr: 10.0.0.0}}]"),
			"cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"},
		"a block without cidr": {ingress("from: [{ipBlock: {}}]"), "spec.ingress[0].from[0].ipBlock.cidr: Required value"},
		"endPort < port": {ingress("ports:\n    - port: 80\n      endPort: 79"),
			"f:8: NetworkPolicy \"a\": spec.ingress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`"},
		"endPort with a name":      {ingress("ports: [{port: http, endPort: 90}]"), "endPort: Invalid value: 90: may not be specified when `port` is non-numeric"},
		"endPort without port":     {ingress("ports: [{endPort: 90}]"), "endPort: Invalid value: 90: may not be specified when `port` is not specified"},
		"port 0":                   {ingress("ports: [{port: 0}]"), "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"},
		"port 65536":               {ingress("ports: [{port: 65536}]"), "port: Invalid value: 65536: must be between 1 and 65535, inclusive"},
		"a negative port":          {ingress("ports: [{port: -1}]"), "port: Invalid value: -1: must be between 1 and 65535, inclusive"},
		"a port beyond 64 bits":    {ingress("ports: [{port: 99999999999999999999}]"), "a number is wanted"},
		"endPort 65536":            {ingress("ports: [{port: 1, endPort: 65536}]"), "endPort: Invalid value: 65536: must be between 1 and 65535, inclusive"},
		"a port's name of nothing": {ingress(`ports: [{port: ""}]`), "must contain only alpha-numeric characters"},
		"a number in quotes":       {ingress(`ports: [{port: "80"}]`), `port: Invalid value: "80": must contain at least one letter (a-z)`},
		"capitals":                 {ingress("ports: [{port: HTTP}]"), `port: Invalid value: "HTTP": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)`},
		"a name of 16":             {ingress("ports: [{port: abcdefghijklmnop}]"), "must be no more than 15 bytes"},
		"two hyphens":              {ingress("ports: [{port: a--b}]"), "must not contain consecutive hyphens"},
		"a hyphen first":           {ingress("ports: [{port: -b}]"), "must not begin or end with a hyphen"},
		"protocol": {ingress("ports: [{protocol: ICMP}]"),
			`spec.ingress[0].ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"`},
		"protocol of nothing":     {ingress(`ports: [{protocol: ""}]`), `protocol: Unsupported value: ""`},
		"protocol in small print": {ingress("ports: [{protocol: tcp}]"), `protocol: Unsupported value: "tcp"`},
		"policyTypes":             {head + "  policyTypes: [ingress]", `spec.policyTypes[0]: Unsupported value: "ingress": supported values: "Ingress", "Egress"`},
		"three policyTypes": {head + "  policyTypes: [Ingress, Egress, Ingress]",
			"spec.policyTypes: Invalid value: [\"Ingress\" \"Egress\" \"Ingress\"]: may not specify more than two policyTypes"},
		"an unknown operator": {head + "  podSelector: {matchExpressions: [{key: a, operator: Is}]}",
			`spec.podSelector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator`},
		"In without values": {head + "  podSelector: {matchExpressions: [{key: a, operator: In}]}",
			"spec.podSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"},
		"Exists with values": {head + "  podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
			"values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"},
		"a label's key":             {head + "  podSelector: {matchLabels: {'a b': c}}", `spec.podSelector.matchLabels: Invalid value: "a b": name part must consist of alphanumeric characters`},
		"a prefix of nothing":       {head + "  podSelector: {matchLabels: {'/b': c}}", "prefix part must be non-empty"},
		"a value of 64":             {head + "  podSelector: {matchLabels: {a: " + strings.Repeat("x", 64) + "}}", "must be no more than 63 bytes"},
		"a value that is no string": {head + "  podSelector: {matchLabels: {a: 1}}", "f:5: NetworkPolicy: spec.podSelector.matchLabels.a: Invalid value: 1: a string is wanted: put it in quotes"},
		"an unknown field":          {head + "  podselector: {}", `f:5: NetworkPolicy: unknown field "spec.podselector" (did you mean "podSelector"?)`},
		"an unknown field below":    {ingress("form: []"), `unknown field "spec.ingress[0].form"`},
		"an unknown field on top":   {head + "  podSelector: {}\nspecs: {}", `f:6: NetworkPolicy: unknown field "specs" (did you mean "spec"?)`},
		"a field twice":             {head + "  podSelector: {}\n  podSelector: {}", `f:6: NetworkPolicy: duplicate field "spec.podSelector"`},
		"a field twice, JSON":       {`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a","name":"b"}}`, `duplicate field "metadata.name"`},
		"a list that is none":       {head + "  ingress: {}", `spec.ingress: Invalid value: a list is wanted`},
		"a rule that is a list":     {head + "  ingress: [[]]", `spec.ingress[0]: Invalid value: an object is wanted`},
		"another API group":         {"apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy", `f:1: NetworkPolicy of "crd.projectcalico.org/v1": only that of networking.k8s.io/v1 is known`},
		"an older API":              {"apiVersion: extensions/v1beta1\nkind: NetworkPolicy", "only that of networking.k8s.io/v1 is known"},
		"another group's kind":      {"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy", `"CiliumNetworkPolicy" of "cilium.io/v2": only NetworkPolicy of networking.k8s.io/v1 and Namespace of v1 are known`},
		"admin policies":            {"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy", "are known"},
		"no kind":                   {"metadata: {name: a}", "f:1: apiVersion and kind must be set"},
		"no object":                 {"hello", "f:1: an object is wanted"},
		"no name":                   {"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy", "metadata.name: Required value: name or generateName is required"},
		"a name with capitals": {strings.Replace(head, "name: a", "name: A", 1) + "  podSelector: {}",
			`metadata.name: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of`},
		"a name with a slash": {strings.Replace(head, "name: a", "name: a/b", 1) + "  podSelector: {}", `metadata.name: Invalid value: "a/b"`},
		"a namespace with a dot": {strings.Replace(head, "name: a", "name: a, namespace: a.b", 1) + "  podSelector: {}",
			`f:3: NetworkPolicy "a": metadata.namespace: Invalid value: "a.b": must not contain dots`},
		"a namespace with a slash": {strings.Replace(head, "name: a", "name: a, namespace: a/b", 1) + "  podSelector: {}", `metadata.namespace: Invalid value: "a/b"`},
		"twice":                    {head + "  podSelector: {}\n---\n" + head + "  podSelector: {}", "f:7: NetworkPolicy \"a\": NetworkPolicy default/a is there already: f:1"},
		"a tab":                    {head + "\tpodSelector: {}", "f:5: found character that cannot start any token: YAML is indented by spaces, not tabs"},
		"no YAML":                  {"a: [", "f:1:"},
		"another name as label":    {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {kubernetes.io/metadata.name: b}}", "is always the name of the namespace"},
		"another default":          {"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  annotations: {overlayd/policy-default: no-way}", `f:5: Namespace: metadata.annotations: overlayd/policy-default: Unsupported value: "no-way"`},
		"a label of a namespace":   {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {a: 'b c'}}", `f:3: Namespace: metadata: label a: value "b c": a valid label must be`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s manifest.Set
			err := s.Read("f", []byte(c.text), "")
			if err == nil {
				t.Fatalf("taken: %+v", s)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %s", err, c.want)
			}
			if n := strings.Count(err.Error(), "\n"); n > 0 {
				t.Errorf("%d lines", n+1)
			}
		})
	}
}

// TestBomb is of aliases that would be a billion objects.
func TestBomb(t *testing.T) {
	t.Parallel()
	text := "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
	for c := 'b'; c < 'k'; c++ {
		text += string(c) + ": &" + string(c) + " [" + strings.TrimSuffix(strings.Repeat("*"+string(c-1)+",", 10), ",") + "]\n"
	}
	bomb := "apiVersion: v1\nkind: List\nitems:\n- &x {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod}]}\n"
	for range 30 {
		bomb += "- &x {apiVersion: v1, kind: List, items: [*x, *x]}\n"
	}
	for _, text := range []string{text, bomb} {
		if err := new(manifest.Set).Read("f", []byte(text), ""); err == nil {
			t.Error("taken")
		}
	}
}

// TestSeeds are the five files that the tutorials show, as they are, and as editors of other systems leave them.
func TestSeeds(t *testing.T) {
	t.Parallel()
	files, _ := filepath.Glob("testdata/seeds/*.yaml")
	if len(files) != 5 {
		t.Fatal(files)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var want string
		for i, text := range []string{
			string(data), "---\n" + string(data), strings.ReplaceAll(string(data), "\n", "\r\n"), "\ufeff" + string(data),
			strings.ReplaceAll(strings.ReplaceAll(string(data), "#", "\t# \t"), "\nspec:", "\n\t\nspec:\t# 规则"),
			"---\r\n" + strings.ReplaceAll(string(data), "\n", "\r\n") + "---\r\n\t# 完\r\n",
		} {
			var s manifest.Set
			if err := s.Read(file, []byte(text), "dev"); err != nil {
				t.Errorf("%d: %v", i, err)
				continue
			}
			if len(s.Policies) != 1 || s.Policies[0].Namespace != "dev" || len(s.Warnings)+len(s.Skipped) > 0 {
				t.Fatalf("%d: %+v", i, s)
			}
			got := marshal(t, s.Policies[0])
			if want == "" {
				want = got
				t.Log(got)
			}
			if got != want {
				t.Errorf("%d: %s", i, cmp.Diff(want, got))
			}
		}
	}
}

func marshal(t *testing.T, p policy.Policy) string {
	t.Helper()
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

const all = `
apiVersion: v1
kind: List
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    name: a.b
    uid: 3
    labels: {x: y}
    annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
  spec:
    podSelector: &web {matchLabels: {example.com/app: web, tier: ""}}
    policyTypes: []
    ingress:
    - null
    - ports:
      - port: http
      - protocol: UDP
      - {port: 8000, endPort: 0x1fff}
      from:
      - podSelector: *web
        namespaceSelector: {matchExpressions: [{key: env, operator: NotIn, values: [a, ""]}]}
      - namespaceSelector: {}
        podSelector: null
    egress:
    - to:
      - ipBlock: {cidr: 10.1.2.3/8, except: ['10.2.0.1/16']}
      - ipBlock: {cidr: '::ffff:10.0.0.0/104'}
      - ipBlock: {cidr: 'FD00:0::/64'}
- apiVersion: v1
  kind: Pod
  metadata: {name: p}
- apiVersion: v1
  kind: Namespace
  metadata:
    name: prod
    labels: {kubernetes.io/metadata.name: prod, env: prod}
    annotations: {overlayd/policy-default: deny, x: y}
  status: {phase: Active}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicyList
metadata: {resourceVersion: ""}
items:
- metadata: {name: c, namespace: prod}
  spec: {podSelector: null, egress: []}
`

func TestRead(t *testing.T) {
	t.Parallel()
	var s manifest.Set
	if err := s.Read("f", []byte(all), ""); err != nil {
		t.Fatal(err)
	}
	web := policy.Selector{MatchLabels: map[string]string{"example.com/app": "web", "tier": ""}}
	want := []policy.Policy{{
		Namespace: "default", Name: "a.b", Spec: policy.Spec{
			PodSelector: web, PolicyTypes: []policy.Type{policy.Ingress, policy.Egress},
			Ingress: []policy.IngressRule{{}, {
				Ports: []policy.Port{{Protocol: policy.TCP, Name: "http"}, {Protocol: policy.UDP}, {Protocol: policy.TCP, Port: 8000, EndPort: 8191}},
				From: []policy.Peer{{PodSelector: &web, NamespaceSelector: &policy.Selector{
					MatchExpressions: []policy.Requirement{{Key: "env", Operator: policy.NotIn, Values: []string{"a", ""}}},
				}}, {NamespaceSelector: new(policy.Selector)}},
			}},
			Egress: []policy.EgressRule{{To: []policy.Peer{
				{IPBlock: &policy.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.2.0.0/16"}}},
				{IPBlock: &policy.IPBlock{CIDR: "10.0.0.0/8"}}, {IPBlock: &policy.IPBlock{CIDR: "fd00::/64"}},
			}}},
		},
	}, {Namespace: "prod", Name: "c", Spec: policy.Spec{PolicyTypes: []policy.Type{policy.Ingress}}}}
	if d := cmp.Diff(want, s.Policies); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	namespaces := []policy.Namespace{{Name: "prod", Labels: map[string]string{"env": "prod"}, Default: policy.Deny}}
	if d := cmp.Diff(namespaces, s.Namespaces); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	warnings := []string{
		`f:28: NetworkPolicy "a.b": spec.egress[0].to[0].ipBlock.cidr: CIDR value "10.1.2.3/8" is ambiguous in this context (should be "10.0.0.0/8" or "10.1.2.3/32"?)`,
		`f:28: NetworkPolicy "a.b": spec.egress[0].to[0].ipBlock.except[0]: CIDR value "10.2.0.1/16" is ambiguous in this context (should be "10.2.0.0/16" or "10.2.0.1/32"?)`,
		`f:29: NetworkPolicy "a.b": spec.egress[0].to[1].ipBlock.cidr: non-standard CIDR value "::ffff:10.0.0.0/104" is invalid: use "10.0.0.0/8"`,
		`f:30: NetworkPolicy "a.b": spec.egress[0].to[2].ipBlock.cidr: IPv6 CIDR value "FD00:0::/64" should be in RFC 5952 canonical format ("fd00::/64")`,
	}
	if d := cmp.Diff(warnings, s.Warnings); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if d := cmp.Diff([]string{`f:31: "Pod" is neither NetworkPolicy nor Namespace: skipped`}, s.Skipped); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

// TestBack reads what Object writes.
func TestBack(t *testing.T) {
	t.Parallel()
	var s, back manifest.Set
	if err := s.Read("f", []byte(all), ""); err != nil {
		t.Fatal(err)
	}
	var objects []map[string]any
	for _, p := range s.Policies {
		o, err := manifest.Object(p)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
		data := marshal(t, p)
		if again, err := policy.ParsePolicy(p.Key(), []byte(data)); err != nil || !cmp.Equal(p, again) {
			t.Errorf("etcd: %v %s", err, cmp.Diff(p, again))
		}
	}
	for _, n := range s.Namespaces {
		objects = append(objects, manifest.NamespaceObject(n))
	}
	text, err := yaml.Marshal(manifest.List(objects))
	if err != nil {
		t.Fatal(err)
	}
	if err := back.Read("back", text, ""); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if d := cmp.Diff(s.Policies, back.Policies) + cmp.Diff(s.Namespaces, back.Namespaces); d != "" {
		t.Errorf("-want +got\n%s\n%s", d, text)
	}
}

func TestNamespaceOfTheCommandLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ own, given, want string }{{"", "", "default"}, {"", "dev", "dev"}, {"dev", "", "dev"}, {"dev", "dev", "dev"}, {"prod", "dev", "!"}} {
		var s manifest.Set
		text := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: a\n  namespace: " + c.own
		err := s.Read("f", []byte(text), c.given)
		if c.want == "!" {
			want := `f:5: NetworkPolicy "a": the namespace from the provided object "prod" does not match the namespace "dev": leave -n out, or pass -n prod`
			if err == nil || err.Error() != want {
				t.Errorf("%v: %v", c, err)
			}
			continue
		}
		if err != nil || s.Policies[0].Namespace != c.want {
			t.Errorf("%v: %v %v", c, s.Policies, err)
		}
	}
}

// FuzzRead looks for panics, and for policies that are taken though etcd's reader would not take them.
func FuzzRead(f *testing.F) {
	f.Add([]byte(all))
	f.Add([]byte(head + "  podSelector: {}"))
	f.Add([]byte(ingress("ports: [{port: http, endPort: 90}]")))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s manifest.Set
		if err := s.Read("f", data, ""); err != nil {
			return
		}
		for _, p := range s.Policies {
			if _, err := policy.ParsePolicy(p.Key(), []byte(marshal(t, p))); err != nil {
				t.Errorf("%+v: %v", p, err)
			}
		}
	})
}
