package policy

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// applyFile applies a file as it is.
func (r *rig) applyFile(ns, path string) {
	r.t.Helper()
	document, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	if !r.paper {
		r.must("", "policy", "apply", "-n", ns, "-f", path)
		r.markStep()
	}
	if err := r.world.read(ns, string(document)); err != nil {
		r.t.Fatal(err)
	}
}

// thousand is that many policies that allow one port and one container each.
func thousand() string {
	var docs strings.Builder
	for i := range 1000 {
		docs.WriteString(netpolText("dev", fmt.Sprintf("p%03d", i), fmt.Sprintf(
			"{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: a%d}}}], ports: [{port: %d}]}]}", i, i+1000)))
	}
	docs.WriteString(netpolText("dev", "last", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}"))
	return docs.String()
}

// permuted applies three policies in each of the six orders, and deletes them.
func permuted() []func(*rig) {
	docs := []string{
		netpolText("dev", "p", "{podSelector: {}}"),
		netpolText("dev", "q", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]}"),
		netpolText("dev", "r", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 81}]}]}"),
	}
	var steps []func(*rig)
	for _, order := range [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		steps = append(steps, func(r *rig) {
			for _, i := range order {
				r.apply("", docs[i])
			}
		}, drop("dev/p", "dev/q", "dev/r"))
	}
	return steps
}

// newCast is a rig with the containers of the cases.
func newCast(t *testing.T, args ...string) (*rig, map[*pod]map[string]string) {
	t.Helper()
	r := newRig(t, args...)
	labels := make(map[*pod]map[string]string)
	for i, c := range cast {
		p := r.newPod(r.hosts[i%2], c.ns, c.name, c.labels, c.ports...)
		r.pods, labels[p] = append(r.pods, p), c.labels
	}
	for ns, l := range castNamespaces {
		r.labelNamespace(ns, l)
	}
	return r, labels
}

// sections are the cases, by the letter of POLICY-CASES.md.
var sections = []struct {
	name  string
	cases []polCase
}{
	{"A", seedCases}, {"B", isolationCases}, {"C", peerCases}, {"D", portCases}, {"E", blockCases}, {"F", severalCases}, {"G", changeCases},
}

// TestCasesOnPaper finds no step without a consequence: each denies something, or allows it again. It needs no kernel.
func TestCasesOnPaper(t *testing.T) {
	r := &rig{t: t, world: newWorld(), paper: true, outside: &pod{podName: "outside", addrs: wireAddrs(outsideNumber)}}
	labels := make(map[*pod]map[string]string)
	for i, c := range cast {
		p := &pod{rig: r, ns: c.ns, podName: c.name, labels: c.labels, ports: c.ports, addrs: [2]netip.Addr{
			netip.AddrFrom4([4]byte{10, 5, byte(i % 2), byte(i + 2)}), netip.MustParseAddr(fmt.Sprintf("fc00:5:0:%d::%d", i%2, i+2))}}
		r.pods, labels[p] = append(r.pods, p), c.labels
	}
	for ns, l := range castNamespaces {
		r.labelNamespace(ns, l)
	}
	for _, section := range sections {
		for _, c := range section.cases {
			changed := 0
			before := len(r.everyPair())
			for _, step := range c.steps {
				step(r)
				allowed := 0
				for _, p := range r.everyPair() {
					if r.world.allows(p) {
						allowed++
					}
				}
				if allowed != before {
					changed++
				}
				before = allowed
			}
			if changed == 0 {
				t.Errorf("%s %d, %s: changes nothing", section.name, c.number, c.what)
			}
			r.reset(labels)
		}
	}
}

// TestSections has the cases of POLICY-CASES.md, sections A to G, in the kernel; make test is content with those of each section
// that are marked.
func TestSections(t *testing.T) {
	r, labels := newCast(t)
	r.check("no policy")
	r.mark()
	for _, section := range sections {
		for _, c := range section.cases {
			if !c.quick && !everything() {
				continue
			}
			for i, step := range c.steps {
				step(r)
				r.check(fmt.Sprintf("%s %d, %s: step %d", section.name, c.number, c.what, i+1))
			}
			r.reset(labels)
			for ns := range r.world.namespaces {
				r.labelNamespace(ns, castNamespaces[ns])
			}
			total.addCase()
		}
	}
	r.unmark()
	r.check("no policy any more")
}
