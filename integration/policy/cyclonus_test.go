package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The output of the command in cyclonus/, as far as it matters here; a policy stays as it came.

type cyclonusCase struct {
	Description string
	Steps       []struct {
		Actions []cyclonusAction
		Pods    []string
		Allowed []string
	}
}

type cyclonusAction struct {
	Put                                                json.RawMessage
	Delete, Namespace, DeleteNamespace, Pod, DeletePod string
	Labels                                             map[string]string
}

// cyclonusLabels are those of its namespaces.
var cyclonusLabels = map[string]map[string]string{"x": {"ns": "x"}, "y": {"ns": "y"}, "z": {"ns": "z"}}

// spares is how many containers a case of cyclonus' may create.
const spares = 2

// cyclonusCases has cyclonus make its cases for the containers. allowDNS is its own default; without, policies of egress have no
// rule for port 53 beside them.
func cyclonusCases(t *testing.T, pods []*pod, allowDNS bool) []cyclonusCase {
	t.Helper()
	command := filepath.Join(t.TempDir(), "cyclonus")
	if out, err := exec.Command("go", "build", "-C", "cyclonus", "-o", command, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build cyclonus: %v\n%s", err, out)
	}
	type pod struct {
		Namespace, Name string
		Labels          map[string]string
		IPs             []string
	}
	type port struct {
		Name     string
		Port     uint16
		Protocol string
	}
	in := struct {
		Namespaces  map[string]map[string]string
		Pods, Spare []pod
		Ports       []port
		AllowDNS    bool
		BlockIP     string
	}{Namespaces: map[string]map[string]string{}, AllowDNS: allowDNS}
	w := &world{namespaces: cyclonusLabels}
	for ns := range cyclonusLabels {
		in.Namespaces[ns] = w.labelsOf(ns)
	}
	for _, p := range pods {
		in.Pods = append(in.Pods, pod{p.ns, p.podName, p.labels, []string{p.addrs[v4].String(), p.addrs[v6].String()}})
		in.BlockIP = p.addrs[v4].String() // that of z/c in the end
	}
	for range spares { // their addresses are in no block of a case that creates some
		in.Spare = append(in.Spare, pod{IPs: []string{"192.0.2.1", "2001:db8::1"}})
	}
	for _, s := range services {
		if s.proto != "icmp" {
			in.Ports = append(in.Ports, port{fmt.Sprintf("serve-%d-%s", s.port, s.proto), s.port, strings.ToUpper(s.proto)})
		}
	}
	stdin, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(command)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cyclonus: %v", err)
	}
	var cases []cyclonusCase
	if err := json.Unmarshal(out, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// cyclonusPorts are the names that cyclonus' containers give to their ports.
func cyclonusPorts() []namedPort {
	var ports []namedPort
	for _, s := range services {
		if s.proto != "icmp" {
			ports = append(ports, namedPort{fmt.Sprintf("serve-%d-%s", s.port, s.proto), s.port, s.proto})
		}
	}
	return ports
}

// eachCyclonusPod calls f for a, b and c of the namespaces x, y and z, of which those of one name are on both hosts, and those of
// one namespace too.
func eachCyclonusPod(f func(host int, ns, name string)) {
	for i, ns := range []string{"x", "y", "z"} {
		for j, name := range []string{"a", "b", "c"} {
			f((i+j)%2, ns, name)
		}
	}
}

// TestOraclesAgree compares cyclonus' evaluator with ours, for all that both know, without a packet.
func TestOraclesAgree(t *testing.T) {
	if !everything() {
		t.Skip("make test-policy does")
	}
	var pods []*pod
	eachCyclonusPod(func(host int, ns, name string) {
		n := byte(len(pods) + 2)
		pods = append(pods, &pod{ns: ns, podName: name, labels: map[string]string{"pod": name}, ports: cyclonusPorts(), addrs: [2]netip.Addr{
			netip.AddrFrom4([4]byte{10, 5, byte(host), n}), netip.MustParseAddr(fmt.Sprintf("fc00:5:0:%d::%d", host, n))}})
	})
	for _, allowDNS := range []bool{true, false} {
		steps, probes := 0, 0
		for _, c := range cyclonusCases(t, pods, allowDNS) {
			r := &rig{t: t, world: newWorld(), paper: true}
			s := newCyclonusRun(r, pods)
			for i, step := range c.Steps {
				s.do(step.Actions)
				want := set(step.Allowed)
				for _, p := range r.pairs() {
					if p.proto != "icmp" && p.from != p.to && r.world.allows(p) != want[p.String()] {
						t.Errorf("%s, step %d: %s: ours says %t", c.Description, i, p, r.world.allows(p))
					}
					probes++
				}
				steps++
			}
			s.end()
		}
		t.Logf("allowDNS=%t: %d steps, %d probes", allowDNS, steps, probes)
	}
}

func set(keys []string) map[string]bool {
	s := make(map[string]bool)
	for _, k := range keys {
		s[k] = true
	}
	return s
}

// cyclonusRun does what the steps of a case say.
type cyclonusRun struct {
	r      *rig
	labels map[*pod]map[string]string // before the case
	made   map[string]*pod
}

func newCyclonusRun(r *rig, pods []*pod) *cyclonusRun {
	s := &cyclonusRun{r: r, labels: map[*pod]map[string]string{}, made: map[string]*pod{}}
	r.pods = pods
	for _, p := range pods {
		s.labels[p] = p.labels
	}
	for ns, labels := range cyclonusLabels {
		r.labelNamespace(ns, labels)
	}
	return s
}

func (s *cyclonusRun) do(actions []cyclonusAction) {
	s.r.t.Helper()
	for _, a := range actions {
		switch {
		case a.Put != nil:
			s.r.apply("", string(a.Put))
		case a.Delete != "":
			s.r.remove(a.Delete)
		case a.Namespace != "":
			s.r.labelNamespace(a.Namespace, a.Labels)
		case a.DeleteNamespace != "":
			s.r.labelNamespace(a.DeleteNamespace, nil)
		case a.DeletePod != "":
			s.r.leave(a.DeletePod)
		case a.Pod != "":
			s.pod(a.Pod, a.Labels)
		}
	}
}

// pod gives a container labels, and makes it if it is not there.
func (s *cyclonusRun) pod(key string, labels map[string]string) {
	for _, p := range s.r.pods {
		if p.key() == key {
			p.relabel(labels)
			return
		}
	}
	ns, name, _ := strings.Cut(key, "/")
	if s.r.paper {
		s.r.pods = append(s.r.pods, &pod{rig: s.r, ns: ns, podName: name, labels: labels, ports: cyclonusPorts(), addrs: [2]netip.Addr{
			netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.MustParseAddr("2001:db8::1")}})
		return
	}
	s.r.pods = append(s.r.pods, s.r.newPod(s.r.hosts[len(s.r.pods)%2], ns, name, labels, cyclonusPorts()...))
}

// end leaves the containers as they were before the case.
func (s *cyclonusRun) end() {
	s.r.t.Helper()
	for _, p := range s.r.pods {
		if s.labels[p] == nil {
			s.r.leave(p.key())
		}
	}
	s.r.reset(s.labels)
	for ns, labels := range cyclonusLabels {
		s.r.labelNamespace(ns, labels)
	}
}

// TestCyclonus has each case of cyclonus' in the kernel, probes after each step, and compares with what cyclonus says; ICMP and
// what comes and goes outside is ours to say.
func TestCyclonus(t *testing.T) {
	if !everything() {
		t.Skip("make test-policy does")
	}
	r := newRig(t)
	var pods []*pod
	eachCyclonusPod(func(host int, ns, name string) {
		pods = append(pods, r.newPod(r.hosts[host], ns, name, map[string]string{"pod": name}, cyclonusPorts()...))
	})
	r.pods = pods
	r.check("no policy") // and nobody's neighbours are unknown from here on
	r.mark()
	cases := cyclonusCases(t, pods, true)
	for i, c := range cases {
		s := newCyclonusRun(r, pods)
		for j, step := range c.Steps {
			s.do(step.Actions)
			want := set(step.Allowed)
			r.expect(fmt.Sprintf("case %d, step %d: %s", i+1, j+1, c.Description), r.everyPair(), func(p probe) bool {
				if p.proto == "icmp" || p.from == p.to || p.from.ns == "" || p.to.ns == "" {
					return r.world.allows(p)
				}
				return want[p.String()]
			})
		}
		s.end()
		total.addCase()
	}
	r.unmark()
	r.check("no policy any more")
}
