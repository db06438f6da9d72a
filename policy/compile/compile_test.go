package compile_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
)

// stage has the cast on it, and flushes what it is told into a kernel.
func stage(t testing.TB, policies string) *told {
	w := newTold()
	for key, e := range cast {
		w.c.SetEndpoint(key, e)
	}
	w.flush(t)
	w.set(t, policies)
	return w
}

func (w *told) flush(t testing.TB) compile.Change {
	t.Helper()
	change := w.c.Flush()
	w.k.apply(t, change)
	return change
}

func (w *told) set(t testing.TB, policies string) compile.Change {
	t.Helper()
	w.c.SetPolicies(parsePolicies(t, policies), nil)
	return w.flush(t)
}

// passes asks the compiler and the kernel's model.
func (w *told) passes(t testing.TB, line string, want bool) {
	t.Helper()
	f := parseFlow(t, line)
	if judged, kernel := w.c.Judge(f.src, f.dst, f.proto, f.port), w.k.allowed(f.src, f.dst, f.proto, f.port); judged != want || kernel != want {
		t.Errorf("%s: want %t, judged %t, in the kernel %t\n%s", line, want, judged, kernel, w.k.text())
	}
}

// TestGolden shows what groups are.
func TestGolden(t *testing.T) {
	t.Parallel()
	w := stage(t, `
a/web: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{protocol: TCP, name: web}, {protocol: UDP}]}, {ports: [{protocol: TCP, port: 443}]}]}
a/db: {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/28]}}, {ipBlock: {cidr: 10.0.1.0/24}}, {ipBlock: {cidr: 10.0.0.1/32}}, {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}], ports: [{protocol: TCP, port: 80, endPort: 90}]}, {ports: [{protocol: UDP, name: dns}]}]}
`)
	want := `10.0.0.1
  in isolated
    10.0.0.3 tcp 80
    10.0.0.3 udp
    everybody tcp 443
    fd00::3 tcp 80
    fd00::3 udp
  out open
10.0.0.2
  in isolated
    10.0.0.3 tcp 81
    10.0.0.3 udp
    everybody tcp 443
    fd00::3 tcp 81
    fd00::3 udp
  out open
10.0.0.3
  in open
  out isolated
    10.0.0.1 tcp 80-90
    10.0.0.16-10.0.1.255 tcp 80-90
    10.0.0.17 tcp 80-90
    10.0.0.17 udp 53
    10.0.0.2 tcp 80-90
    10.0.0.33 tcp 80-90
    fd00::1 tcp 80-90
    fd00::11 tcp 80-90
    fd00::11 udp 53
    fd00::2 tcp 80-90
    fd00::21 tcp 80-90
10.0.0.33
  in open
  out open
10.0.0.4
  in open
  out open
`
	got := w.k.text()
	var ours []string
	for line := range strings.SplitAfterSeq(got, "\n") { // IPv6's are the same.
		if strings.HasPrefix(line, "fd00") {
			break
		}
		ours = append(ours, line)
	}
	if diff := cmp.Diff(want, strings.Join(ours, "")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestNamesOfGroups(t *testing.T) {
	t.Parallel()
	w := stage(t, `a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}`)
	sides := func(name string) compile.Sides { return w.k.local[cast[name].IPs[0]] }
	first := sides("a/web")
	if first.In[0] != 'i' || first.Out[0] != 'e' || first != sides("a/web2") || len(first.In) > 3 {
		t.Fatalf("web is in %v, web2 in %v", first, sides("a/web2"))
	}
	change := w.set(t, `a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}]}`)
	if first != sides("a/web") || len(change.Make)+len(change.Set)+len(change.Drop) > 0 || len(change.Add[first.In]) != 8 || change.Narrow {
		t.Errorf("a policy's rules were changed, and web is in %v, not %v: %+v", sides("a/web"), first, change)
	}
	w.set(t, `a/q: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}`)
	second := sides("a/web")
	if second.In == first.In || second.Out != first.Out {
		t.Errorf("with a policy more web is in %v, after %v", second, first)
	}
	w.c.SetPolicies(nil, []string{"a/q"})
	w.flush(t)
	if third := sides("a/web"); third.In == first.In || third.In == second.In {
		t.Errorf("a dropped group's name is used again: %v, %v, %v", first, second, third)
	}
}

// TestNet is that what comes and goes between two flushes is nothing.
func TestNet(t *testing.T) {
	t.Parallel()
	w := stage(t, `a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}`)
	w.c.SetEndpoint("x", member("a/x", 9, "app=db", ""))
	w.c.SetEndpoint("x", nil)
	w.c.SetEndpoint("a/db", nil)
	w.c.SetEndpoint("a/db", cast["a/db"])
	w.c.SetEndpoint("b/web", member("b/web", 17, "app=none", ""))
	w.c.SetEndpoint("b/web", cast["b/web"])
	w.c.SetPolicies(parsePolicies(t, `a/q: {podSelector: {}, policyTypes: [Ingress]}`), nil)
	w.c.SetPolicies(nil, []string{"a/q"})
	w.c.SetNamespace("a", &policy.Namespace{Default: policy.Deny})
	w.c.SetNamespace("a", nil)
	w.c.SetDefault(policy.Deny)
	w.c.SetDefault(policy.Allow)
	if change := w.flush(t); !change.Empty() || change.Narrow {
		t.Errorf("nothing has changed, but %+v", change)
	}
}

// TestNarrow is that connections are judged again when one may be denied, and only then.
func TestNarrow(t *testing.T) {
	t.Parallel()
	const deny, one, two = `{podSelector: {}, policyTypes: [Ingress]}`,
		`{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}`,
		`{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]}`
	const all = `{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}`
	w := stage(t, "")
	step := func(name string, narrow bool, f func()) {
		t.Helper()
		f()
		if change := w.flush(t); change.Narrow != narrow {
			t.Errorf("%s: narrow is %t: %+v", name, change.Narrow, change)
		}
	}
	set := func(key, spec string) func() {
		return func() { w.c.SetPolicies(parsePolicies(t, key+": "+spec), nil) }
	}
	remove := func(key string) func() { return func() { w.c.SetPolicies(nil, []string{key}) } }
	endpoint := func(key string, e *compile.Endpoint) func() { return func() { w.c.SetEndpoint(key, e) } }
	step("a policy that allows everything", false, set("a/p", all))
	step("it is gone", false, remove("a/p"))
	step("a policy elsewhere", false, set("z/p", deny))
	step("the first policy", true, set("a/p", one))
	step("more rules", false, set("a/p", two))
	step("another policy beside it", false, set("a/q", deny))
	step("fewer rules", true, set("a/p", one))
	step("a policy more, and one with fewer rules", true, func() { set("a/p", deny)(); set("a/r", deny)() })
	step("more rules again", false, set("a/p", two))
	step("one of several is gone, that allowed nothing", false, remove("a/q"))
	step("one of several is gone, that the other does not replace", true, remove("a/p"))
	step("the last is gone", false, remove("a/r"))
	step("isolated again", true, set("a/p", two))
	step("a container is new", false, endpoint("new", member("a/new", 77, "app=db", "")))
	step("it is gone", true, endpoint("new", nil))
	step("a peer is new", false, endpoint("b/x", member("b/x", 78, "app=db", "")))
	step("a peer's labels that do not matter", false, endpoint("a/bare", member("a/bare", 4, "x=y", "")))
	step("a peer gains access", false, endpoint("a/bare", member("a/bare", 4, "app=db", "")))
	step("a peer loses access", true, endpoint("a/bare", cast["a/bare"]))
	step("everything", false, set("a/all", all))
	step("a peer has no access of its own any more", false, endpoint("a/db", nil))
	step("not everything", true, remove("a/all"))
	step("a default", true, func() { w.c.SetDefault(policy.Deny) })
	step("no default any more", false, func() { w.c.SetDefault(policy.Allow) })
}

// TestSameAddress is that of two with one address the newer counts, a local one before others, and the other comes back.
func TestSameAddress(t *testing.T) {
	t.Parallel()
	w := stage(t, `a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}]}]}`)
	w.passes(t, "b/web>a/web tcp/1", false)
	w.c.SetEndpoint("thief", member("b/thief", 17, "app=db", ""))
	w.flush(t)
	w.passes(t, "b/web>a/web tcp/1", true)
	w.c.SetEndpoint("b/web", member("b/web", 17, "app=db2", "")) // It does not come to the address anew.
	w.flush(t)
	w.passes(t, "b/web>a/web tcp/1", true)
	w.c.SetEndpoint("thief", nil)
	w.flush(t)
	w.passes(t, "b/web>a/web tcp/1", false)
	w.c.SetEndpoint("thief", member("b/thief", 1, "app=none", ""))
	if change := w.flush(t); !change.Empty() {
		t.Errorf("another host's endpoint with a local one's address changes %+v", change)
	}
	w.passes(t, "b/web>a/web tcp/1", false)
	w.c.SetEndpoint("a/web", nil)
	w.flush(t)
	w.passes(t, "b/web>a/web tcp/1", true) // It is not local any more.
	w.c.SetEndpoint("heir", member("a/heir", 1, "", ""))
	w.flush(t)
	w.passes(t, "out>a/web tcp/1", true) // Whoever gets an address inherits nothing.
}

func TestBlocks(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		block   policy.IPBlock
		yes, no string
	}{
		{policy.IPBlock{CIDR: "::ffff:10.0.0.0/104"}, "10.1.2.3", "192.0.2.1"},
		{policy.IPBlock{CIDR: "10.0.0.77/24"}, "10.0.0.9", "10.0.1.1"},
		{policy.IPBlock{CIDR: "10.0.0.0/24", Except: []string{"10.0.0.77/25"}}, "10.0.0.200", "10.0.0.9"},
		{policy.IPBlock{CIDR: "10.0.0.0/24", Except: []string{"what"}}, "", "10.0.0.5"},
		{policy.IPBlock{CIDR: "what"}, "", "10.0.0.5"},
		{policy.IPBlock{CIDR: "10.0.0.5/32", Except: []string{"10.0.0.0/8"}}, "", "10.0.0.5"},
	} {
		c := compile.New()
		c.SetEndpoint("web", cast["a/web"])
		p := policy.Policy{Namespace: "a", Name: "p", Spec: policy.Spec{PolicyTypes: []policy.Type{policy.Ingress}}}
		p.Spec.Ingress = []policy.IngressRule{{From: []policy.Peer{{IPBlock: &test.block}}}}
		c.SetPolicies(map[string]policy.Policy{"a/p": p}, nil)
		c.Flush()
		dst := cast["a/web"].IPs[0]
		if test.yes != "" && !c.Judge(netip.MustParseAddr(test.yes), dst, 6, 80) {
			t.Errorf("%v does not let %s pass", test.block, test.yes)
		}
		if c.Judge(netip.MustParseAddr(test.no), dst, 6, 80) {
			t.Errorf("%v lets %s pass", test.block, test.no)
		}
		mapped := netip.AddrFrom16(dst.As16())
		if test.yes != "" && !c.Judge(netip.AddrFrom16(netip.MustParseAddr(test.yes).As16()), mapped, 6, 80) {
			t.Errorf("%v does not let %s pass as IPv4-mapped", test.block, test.yes)
		}
	}
}

// TestBlockOfOneAddress is that an address passes once, whether a block or a selector means it, or both, and as long as one does.
func TestBlockOfOneAddress(t *testing.T) {
	t.Parallel()
	const policies = `a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [%s]}]}`
	w := stage(t, "")
	for _, step := range []struct {
		peers string
		want  bool
	}{
		{`{podSelector: {matchLabels: {app: db}}}`, true},
		{`{podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: 10.0.0.3/32}}`, true},
		{`{podSelector: {matchLabels: {app: db}}}`, true},
		{`{ipBlock: {cidr: 10.0.0.3/32}}`, true},
		{`{podSelector: {matchLabels: {app: none}}}`, false},
		{`{ipBlock: {cidr: 10.0.0.3/32}}, {podSelector: {matchLabels: {app: db}}}`, true},
		{`{ipBlock: {cidr: 10.0.0.2/31}}, {podSelector: {matchLabels: {app: db}}}`, true},
	} {
		w.set(t, fmt.Sprintf(policies, step.peers))
		w.passes(t, "a/db>a/web tcp/80", step.want)
		w.checkFullKernel(t)
	}
}
