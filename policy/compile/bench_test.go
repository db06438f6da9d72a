package compile_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
)

// manyPolicies are n policies in 50 namespaces: half of them isolate an application there each, the others all of the first
// namespace, which is that of the local endpoints.
func manyPolicies(n int) map[string]policy.Policy {
	policies := map[string]policy.Policy{}
	app := func(i int) *policy.Selector {
		return &policy.Selector{MatchLabels: map[string]string{"app": fmt.Sprint("app", i%1000)}}
	}
	for i := range n {
		p := policy.Policy{Namespace: fmt.Sprint("ns", i%50), Name: fmt.Sprint("p", i)}
		p.Spec.PolicyTypes = []policy.Type{policy.Ingress, policy.Egress}
		p.Spec.PodSelector = *app(i)
		if i%2 == 1 {
			p.Namespace, p.Spec.PodSelector = "ns0", policy.Selector{}
		}
		p.Spec.Ingress = []policy.IngressRule{
			{From: []policy.Peer{{PodSelector: app(i + 1)}}, Ports: []policy.Port{{Protocol: policy.TCP, Port: uint16(1000 + i%7)}}},
			{From: []policy.Peer{{NamespaceSelector: &policy.Selector{MatchLabels: map[string]string{"env": fmt.Sprint(i % 5)}}, PodSelector: app(i + 2)}}},
		}
		p.Spec.Egress = []policy.EgressRule{
			{To: []policy.Peer{{NamespaceSelector: &policy.Selector{}, PodSelector: app(i + 3)}}, Ports: []policy.Port{{Protocol: policy.TCP, Name: "web"}}},
			{To: []policy.Peer{{IPBlock: &policy.IPBlock{CIDR: fmt.Sprintf("192.168.%d.0/24", i%256)}}}},
		}
		policies[p.Namespace+"/"+p.Name] = p
	}
	return policies
}

// manyEndpoints are n of both families, of 1,000 applications with six labels; distinct: one of them differs in each.
// The first 100 are local.
func manyEndpoints(n int, distinct bool) []*compile.Endpoint {
	list := make([]*compile.Endpoint, n)
	for i := range list {
		e := &compile.Endpoint{Local: i < 100}
		e.Identity = policy.Identity{
			Namespace: fmt.Sprint("ns", i%50), Name: fmt.Sprintf("app%d-%d", i%1000, i),
			Labels: map[string]string{
				"app": fmt.Sprint("app", i%1000), "tier": fmt.Sprint(i % 3), "version": "v1", "team": fmt.Sprint("team", i%20),
				"app.kubernetes.io/managed-by": "nomad", "pod": "same",
			},
			Ports: []policy.NamedPort{{Name: "web", Port: 8080, Protocol: policy.TCP}},
		}
		if e.Local {
			e.Namespace = "ns0"
		}
		if distinct {
			e.Labels["pod"] = e.Name
		}
		e.IPs = []netip.Addr{
			netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
			netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}),
		}
		list[i] = e
	}
	return list
}

func key(i int) string {
	return fmt.Sprintf("ns%d/0123456789abcdef/10.%d.%d.%d", i%50, i>>16, i>>8&255, i&255)
}

func tell(c *compile.Compiler, policies map[string]policy.Policy, endpoints []*compile.Endpoint) {
	c.SetPolicies(policies, nil)
	for i := range 50 {
		c.SetNamespace(fmt.Sprint("ns", i), &policy.Namespace{Labels: map[string]string{"env": fmt.Sprint(i % 5)}})
	}
	for i, e := range endpoints {
		c.SetEndpoint(key(i), e)
	}
}

func size(c compile.Change) (n int) {
	for _, m := range c.Make {
		n += len(m)
	}
	return n
}

func BenchmarkCompile(b *testing.B) {
	for _, distinct := range []bool{false, true} {
		for _, local := range []bool{true, false} {
			b.Run(fmt.Sprintf("policies=1000/endpoints=30000/distinct=%t/isolated=%t", distinct, local), func(b *testing.B) {
				policies, endpoints := manyPolicies(1000), manyEndpoints(30000, distinct)
				for _, e := range endpoints {
					e.Local = e.Local && local
				}
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					c := compile.New()
					tell(c, policies, endpoints)
					n = size(c.Flush())
				}
				b.ReportMetric(float64(n), "matches")
			})
		}
	}
}

// BenchmarkEndpointChange is a peer that gets other labels, and has the old ones again.
func BenchmarkEndpointChange(b *testing.B) {
	for _, n := range []int{10, 30000, 300000} {
		for _, what := range []string{"known", "new", "local"} {
			b.Run(fmt.Sprintf("endpoints=%d/labels=%s", n, what), func(b *testing.B) {
				c := compile.New()
				endpoints := manyEndpoints(n, false)
				tell(c, manyPolicies(1000), endpoints)
				c.Flush()
				e := *endpoints[n-1]
				e.Local = what == "local"
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					other := e
					if i++; what == "new" {
						other.Labels = map[string]string{"app": "app7", "pod": fmt.Sprint(i)}
					} else if i%2 == 0 {
						other.Labels = endpoints[5].Labels
					}
					c.SetEndpoint(key(n-1), &other)
					c.Flush()
				}
			})
		}
	}
}

// BenchmarkPolicyChange is a policy that allows more, and less again.
func BenchmarkPolicyChange(b *testing.B) {
	for _, n := range []int{10, 30000, 300000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			c := compile.New()
			policies := manyPolicies(1000)
			tell(c, policies, manyEndpoints(n, true))
			c.Flush()
			narrow := policies["ns0/p1"]
			wide := narrow
			wide.Spec.Ingress = append(wide.Spec.Ingress[:2:2], policy.IngressRule{From: []policy.Peer{{PodSelector: &policy.Selector{
				MatchLabels: map[string]string{"team": "team7"}}}}})
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				p := wide
				if i++; i%2 == 0 {
					p = narrow
				}
				c.SetPolicies(map[string]policy.Policy{"ns0/p1": p}, nil)
				c.Flush()
			}
		})
	}
}

// BenchmarkMemory says what stays in the heap of 30,000 endpoints and of 1,000 policies.
func BenchmarkMemory(b *testing.B) {
	for _, distinct := range []bool{false, true} {
		for _, policies := range []int{0, 1000} {
			b.Run(fmt.Sprintf("policies=%d/endpoints=30000/distinct=%t", policies, distinct), func(b *testing.B) {
				inUse := func() float64 {
					runtime.GC()
					runtime.GC()
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					return float64(m.HeapAlloc)
				}
				var grown float64
				for b.Loop() {
					before := inUse()
					c := compile.New()
					func() { tell(c, manyPolicies(policies), manyEndpoints(30000, distinct)) }()
					c.Flush()
					grown = inUse() - before
					runtime.KeepAlive(c)
				}
				b.ReportMetric(grown/1e6, "MB")
			})
		}
	}
}
