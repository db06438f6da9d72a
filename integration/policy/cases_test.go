package policy

import (
	"fmt"
	"strings"
)

// polCase is a case of POLICY-CASES.md: after each step every pair is probed.
type polCase struct {
	number int
	what   string
	quick  bool // in make test too
	steps  []func(r *rig)
}

// The containers of the cases, on the hosts in turn; the labels are as people have them.
var cast = []struct {
	ns, name string
	labels   map[string]string
	ports    []namedPort
}{
	{"dev", "pod1", map[string]string{"app": "myapp", "example.com/tier": "front"}, []namedPort{{"web", 80, "tcp"}, {"ask", 81, "udp"}}},
	{"dev", "db", map[string]string{"app": "db", "example.com/tier": "back", "empty": ""}, []namedPort{{"web", 81, "tcp"}}},
	{"dev", "plain", nil, nil},
	{"prod", "pod1", map[string]string{"app": "myapp", "env": "prod"}, []namedPort{{"web", 81, "tcp"}}},
	{"prod", "db", map[string]string{"app": "db", "long": strings.Repeat("x", 63)}, nil},
	{"other", "job", map[string]string{"app": "job", "new": "yes"}, []namedPort{{"web", 80, "udp"}}},
	{"other", "plain", nil, nil},
}

// castNamespaces are described; other is not, and still there.
var castNamespaces = map[string]map[string]string{"dev": {"stage": "dev"}, "prod": {"stage": "prod"}}

// put is a step that applies a policy of a namespace.
func put(ns, name, spec string) func(*rig) {
	return func(r *rig) { r.apply(ns, netpolText(ns, name, spec)) }
}

// puts is a step that applies several in one document.
func puts(docs ...string) func(*rig) {
	return func(r *rig) { r.apply("", strings.Join(docs, "")) }
}

// drop is a step that deletes policies.
func drop(keys ...string) func(*rig) { return func(r *rig) { r.remove(keys...) } }

// file is a step that applies one of the seeds' files as it is.
func file(ns, name string) func(*rig) {
	return func(r *rig) { r.applyFile(ns, "testdata/seeds/"+name) }
}

// pod finds a container by its key.
func (r *rig) pod(key string) *pod {
	r.t.Helper()
	for _, p := range r.pods {
		if p.key() == key {
			return p
		}
	}
	r.t.Fatalf("no container %s", key)
	return nil
}

// label is a step that changes a container's labels.
func label(key string, labels map[string]string) func(*rig) {
	return func(r *rig) { r.pod(key).relabel(labels) }
}

// nsLabel is a step that changes a namespace's labels.
func nsLabel(ns string, labels map[string]string) func(*rig) {
	return func(r *rig) { r.labelNamespace(ns, labels) }
}

// block is an ipBlock around the address of a container, as YAML. What %s stands for is the prefix of bits of its address.
func block(key string, family, bits int, spec string) func(*rig) {
	return func(r *rig) {
		a, err := r.pod(key).addrs[family].Prefix(bits)
		if err != nil {
			r.t.Fatal(err)
		}
		r.apply("dev", netpolText("dev", "block", strings.ReplaceAll(spec, "%s", a.String())))
	}
}

// blocks is block with the whole addresses of two containers, %a and %b, and their families' pools.
func blocks(a, b string, family int, specs ...string) func(*rig) {
	return func(r *rig) {
		host := func(key string) string {
			p := r.pod(key).addrs[family]
			return fmt.Sprintf("%s/%d", p, p.BitLen())
		}
		for i, spec := range specs {
			spec = strings.NewReplacer("%a", host(a), "%b", host(b)).Replace(spec)
			r.apply("dev", netpolText("dev", fmt.Sprintf("block%d", i), spec))
		}
	}
}

// steps makes a case.
func one(number int, what string, steps ...func(*rig)) polCase {
	return polCase{number: number, what: what, steps: steps}
}

// quickly marks a case as one of make test.
func quickly(c polCase) polCase { c.quick = true; return c }
