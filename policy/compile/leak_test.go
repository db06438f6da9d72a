package compile

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/policy"
)

// TestNothingStays is that endpoints and policies that are gone leave nothing behind.
func TestNothingStays(t *testing.T) {
	t.Parallel()
	c := New()
	deny := policy.Policy{Namespace: "a", Name: "p", Spec: policy.Spec{PolicyTypes: []policy.Type{policy.Ingress, policy.Egress}}}
	deny.Spec.Ingress = []policy.IngressRule{{From: []policy.Peer{{NamespaceSelector: &policy.Selector{}},
		{IPBlock: &policy.IPBlock{CIDR: "10.0.0.0/8"}}}}}
	deny.Spec.Egress = []policy.EgressRule{{Ports: []policy.Port{{Protocol: policy.TCP, Name: "web"}},
		To: []policy.Peer{{IPBlock: &policy.IPBlock{CIDR: "10.0.0.0/8"}}}}}
	for i := range 100 {
		e := &Endpoint{Local: i%3 == 0}
		e.Namespace, e.Labels, e.IPs = "a", map[string]string{"n": fmt.Sprint(i)}, []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i % 80)})}
		if i%2 == 0 {
			e.Namespace = fmt.Sprint("ns", i)
		}
		c.SetEndpoint(fmt.Sprint(i), e)
		if i == 50 {
			c.SetPolicies(map[string]policy.Policy{"a/p": deny}, nil)
		}
		c.Flush()
	}
	if len(c.terms) != 3 || len(c.claims) != 20 {
		t.Errorf("there are terms %v, and %d claims", c.terms, len(c.claims))
	}
	for i := range 99 {
		c.SetEndpoint(fmt.Sprint(i), nil)
		c.Flush()
	}
	for _, term := range c.terms {
		if term.active() && len(term.classes) != 1 {
			t.Errorf("%s has %d classes, and there is one", term.key, len(term.classes))
		}
	}
	c.SetEndpoint("99", nil)
	c.SetNamespace("x", &policy.Namespace{})
	c.Flush()
	c.SetNamespace("x", nil)
	if change := c.Flush(); !change.Empty() {
		t.Errorf("%+v", change)
	}
	c.SetPolicies(nil, []string{"a/p"})
	c.Flush()
	for what, n := range map[string]int{
		"endpoints": len(c.endpoints), "addresses": c.addrs.n, "claims": len(c.claims), "classes": len(c.classes), "namespaces": len(c.namespaces),
		"policies": len(c.policies), "terms": len(c.terms), "blocks": len(c.blocks), "index": len(c.index), "groups": len(c.groups),
		"local classes": len(c.locals), "local addresses": len(c.local),
	} {
		if n != 0 {
			t.Errorf("%d %s stay", n, what)
		}
	}
}
