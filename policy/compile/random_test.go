package compile_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
)

// flow is a new connection.
type flow struct {
	src, dst netip.Addr
	proto    uint8
	port     uint16
}

func flows() []flow {
	var list []flow
	var addrs []netip.Addr
	for n := range byte(8) {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 0, 0, n}), netip.AddrFrom16([16]byte{0: 0xfd, 15: n}))
	}
	addrs = append(addrs, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"))
	for _, src := range addrs {
		for _, dst := range addrs {
			if src.Is4() != dst.Is4() {
				continue
			}
			for _, f := range []flow{
				{proto: 6, port: 80}, {proto: 6, port: 81}, {proto: 6, port: 85}, {proto: 17, port: 80}, {proto: 17, port: 81},
				{proto: 132, port: 80}, {proto: 132, port: 443}, {proto: 1}, {proto: 58}, {proto: 47},
			} {
				list = append(list, flow{src, dst, f.proto, f.port})
			}
		}
	}
	return list
}

// told is a compiler and whoever must agree with it.
type told struct {
	*world
	c *compile.Compiler
	k *kernel
}

func newTold() *told { return &told{newWorld(), compile.New(), newKernel()} }

// step tells something new.
func (w *told) step(d dice) {
	switch d.IntN(8) {
	case 0, 1, 2:
		key := fmt.Sprint("e", d.IntN(10))
		e := d.endpoint()
		if d.IntN(4) == 0 {
			e = nil
		}
		if old, ok := w.endpoints[key]; ok && e != nil && d.IntN(3) == 0 { // relabelled
			e.IPs, e.Local = old.IPs, old.Local
		}
		w.c.SetEndpoint(key, e)
		w.setEndpoint(key, e)
	case 3, 4, 5:
		ns, name := d.namespace(), one(d, "p", "q", "r")
		p := d.policy(ns, name)
		if old, ok := w.policies[ns+"/"+name]; ok && d.IntN(2) == 0 { // more or less of the same
			p.Spec.PodSelector, p.Spec.PolicyTypes = old.Spec.PodSelector, old.Spec.PolicyTypes
			p.Spec.Ingress = append(slices.Clone(old.Spec.Ingress), p.Spec.Ingress...)
		}
		if d.IntN(3) == 0 {
			w.c.SetPolicies(nil, []string{ns + "/" + name})
			delete(w.policies, ns+"/"+name)
			return
		}
		w.c.SetPolicies(map[string]policy.Policy{ns + "/" + name: p}, nil)
		w.policies[ns+"/"+name] = p
	case 6:
		name := d.namespace()
		if d.IntN(3) == 0 {
			w.c.SetNamespace(name, nil)
			delete(w.namespaces, name)
			return
		}
		ns := policy.Namespace{Name: name, Labels: d.labels(), Default: one(d, "", "", policy.Allow, policy.Deny)}
		w.c.SetNamespace(name, &ns)
		w.namespaces[name] = ns
	case 7:
		w.def = one(d, policy.Allow, policy.Allow, policy.Deny)
		w.c.SetDefault(w.def)
	}
}

// again is a compiler that hears in one go what another has heard in many.
func (w *told) again() *told {
	n := newTold()
	n.world = w.world
	n.c.SetPolicies(w.policies, nil)
	n.c.SetDefault(w.def)
	for name, ns := range w.namespaces {
		n.c.SetNamespace(name, &ns)
	}
	// Claims of one address come in their order; where those of two contradict each other, the ones that are no claims yet wait.
	for key, e := range w.endpoints {
		none := e
		none.IPs = nil
		n.c.SetEndpoint(key, &none)
	}
	given := map[string][]netip.Addr{}
	for _, ip := range slices.SortedFunc(maps.Keys(w.claims), netip.Addr.Compare) {
		for _, key := range w.claims[ip] {
			given[key] = append(given[key], ip)
			e := w.endpoints[key]
			e.IPs = given[key]
			n.c.SetEndpoint(key, &e)
		}
	}
	return n
}

func TestRandom(t *testing.T) {
	t.Parallel()
	seeds := 120
	if testing.Short() {
		seeds = 20
	}
	all := flows()
	for seed := range seeds {
		d := dice{rand.New(rand.NewPCG(uint64(seed), 15))}
		w := newTold()
		was := map[flow]bool{}
		var before map[netip.Addr]compile.Sides
		for n := range 25 {
			for range one(d, 1, 1, 2, 12) {
				w.step(d)
			}
			change := w.c.Flush()
			w.k.apply(t, change)
			for _, f := range all {
				want := w.allowed(f.src, f.dst, f.proto, f.port)
				got, judged := w.k.allowed(f.src, f.dst, f.proto, f.port), w.c.Judge(f.src, f.dst, f.proto, f.port)
				if got != want || judged != want {
					t.Fatalf("seed %d, step %d: %+v is allowed: %t, in the kernel %t, as judged %t: %s",
						seed, n, f, want, got, judged, w.c.Why(f.src, f.dst, f.proto, f.port))
				}
				_, src := before[f.src]
				_, dst := before[f.dst]
				if seed%5 == 0 && w.explained(f) != want {
					t.Fatalf("seed %d, step %d: %+v is allowed: %t, as explained %t", seed, n, f, want, !want)
				}
				newly := !src && w.k.local[f.src].Out != "" || !dst && w.k.local[f.dst].In != ""
				if was[f] && !want && !change.Narrow && !newly {
					t.Fatalf("seed %d, step %d: %+v was allowed, is not, and the change is not narrow", seed, n, f)
				}
				was[f] = want
			}
			before = maps.Clone(w.k.local)
			w.checkFull(t)
			w.checkPublished(t)
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, n)
			}
		}
	}
}

// TestHold is that who asks for everything first, after many changes, has what everybody else has, and goes on from there.
func TestHold(t *testing.T) {
	t.Parallel()
	for seed := range 60 {
		d := dice{rand.New(rand.NewPCG(uint64(seed), 16))}
		w := newTold()
		w.c.Hold()
		for range 15 {
			w.step(d)
			if c := w.c.Flush(); len(c.Make)+len(c.Add)+len(c.Remove) > 0 {
				t.Fatalf("seed %d: it was not to say so: %+v", seed, c)
			}
		}
		w.k.apply(t, w.c.Full())
		for range 10 {
			w.checkFull(t)
			w.step(d)
			w.k.apply(t, w.c.Flush())
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// explained asks what explains policies to people, of the local sides.
func (w *told) explained(f flow) bool {
	party := func(ip netip.Addr) (policy.Party, bool) {
		if e, ok := w.at(ip); ok {
			return policy.Party{Endpoint: &e.Identity, Addr: ip}, e.Local
		}
		return policy.Party{Addr: ip}, false
	}
	from, fromLocal := party(f.src)
	to, toLocal := party(f.dst)
	target := policy.Target{Port: f.port}
	for name, n := range numbers {
		if n == f.proto {
			target.Protocol = name
		}
	}
	v := policy.Explain(slices.Collect(maps.Values(w.policies)), w.namespaces, w.def, from, to, target)
	return v.Self || (!fromLocal || v.Egress.Allowed()) && (!toLocal || v.Ingress.Allowed())
}

// checkFull compares what changes have led to with everything at once, of the same compiler and of one that begins.
func (w *told) checkFull(t *testing.T) {
	t.Helper()
	w.checkFullKernel(t)
	again := w.again()
	again.k.apply(t, again.c.Flush())
	if diff := cmp.Diff(again.k.text(), w.k.text()); diff != "" {
		t.Errorf("from the beginning it is something else (-beginning +changes):\n%s", diff)
	}
	if change := w.c.Flush(); !change.Empty() || change.Narrow {
		t.Errorf("nothing has changed, but %+v", change)
	}
}

func (w *told) checkFullKernel(t *testing.T) {
	t.Helper()
	full := newKernel()
	full.apply(t, w.c.Full())
	if diff := cmp.Diff(full.text(), w.k.text()); diff != "" {
		t.Errorf("changes have led to something else than everything at once is (-full +changes):\n%s", diff)
	}
	if diff := cmp.Diff(full.groups, w.k.groups); diff != "" {
		t.Errorf("groups (-full +changes):\n%s", diff)
	}
}

// checkPublished compares which endpoints others must know, and where those are that local ones' groups mean.
func (w *told) checkPublished(t *testing.T) {
	t.Helper()
	isolated := 0
	all, namespaces := w.c.Reach()
	for _, e := range w.endpoints {
		if got, want := w.c.Needs(e.Endpoint), w.needs(e.Endpoint); got != want {
			t.Errorf("%+v is needed: %t, want %t", e, got, want)
		}
		if !e.Local {
			continue
		}
		in, din := w.isolating(e, policy.Ingress)
		out, dout := w.isolating(e, policy.Egress)
		if len(in)+len(out) > 0 || din || dout {
			isolated++
		}
		only := world{policies: map[string]policy.Policy{}, namespaces: w.namespaces}
		for i, p := range slices.Concat(in, out) {
			p.Spec.PolicyTypes = []policy.Type{policy.Ingress}
			p.Spec.Ingress = slices.DeleteFunc(slices.Clone(p.Spec.Ingress), func(r policy.IngressRule) bool { return opensNothing(r, e) })
			if i >= len(in) {
				p.Spec.PolicyTypes[0] = policy.Egress
			}
			only.policies[fmt.Sprint(i)] = p
		}
		for _, o := range w.endpoints {
			if only.needs(o.Endpoint) && !all && !slices.Contains(namespaces, o.Namespace) {
				t.Errorf("%+v is a peer of %+v, and not in %v", o, e, namespaces)
			}
		}
	}
	if got := w.c.Isolated(); got != isolated {
		t.Errorf("%d local endpoints are isolated, not %d", isolated, got)
	}
}

// opensNothing says whether a rule is about ports alone that an endpoint does not have.
func opensNothing(r policy.IngressRule, e compile.Endpoint) bool {
	for _, p := range r.Ports {
		if p.Name == "" || slices.ContainsFunc(e.Ports, func(o policy.NamedPort) bool { return o.Name == p.Name && o.Protocol == p.Protocol }) {
			return false
		}
	}
	return len(r.Ports) > 0
}
