// Command cyclonus prints the cases that cyclonus v0.5.6 generates for network policies, and what its own evaluation of them
// says about every probe after every step. It reads the containers as JSON from standard input and writes JSON to standard output.
// It is a module of its own, so that what it needs of Kubernetes is no dependency of overlayd's.
package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/matcher"
	v1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// input is what the cases are made for.
type input struct {
	Namespaces map[string]map[string]string // labels by name
	Pods       []pod
	Spare      []pod // of which the containers are taken that a case creates; only their addresses count, in order
	Ports      []port
	AllowDNS   bool
	BlockIP    string // which the cases with an ipBlock allow a part of the neighbourhood of
}

type pod struct {
	Namespace, Name string
	Labels          map[string]string
	IPs             []string
}

type port struct {
	Name     string
	Port     int
	Protocol v1.Protocol
}

type testCase struct {
	Description string
	Steps       []step
}

// step is what is to be done, in this order, and what is allowed after it.
type step struct {
	Actions []action
	Pods    []string // namespace/name of those that there are
	Allowed []string // probes as probeKey names them; all others are denied
}

type action struct {
	Put             *networkingv1.NetworkPolicy `json:",omitempty"`
	Delete          string                      `json:",omitempty"` // namespace/name of a policy
	Namespace       string                      `json:",omitempty"` // gets Labels
	DeleteNamespace string                      `json:",omitempty"`
	Pod             string                      `json:",omitempty"` // namespace/name: gets Labels, is made if it is not there
	DeletePod       string                      `json:",omitempty"`
	Labels          map[string]string           `json:",omitempty"`
}

func main() {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		fail(err)
	}
	namespaces := slices.Sorted(maps.Keys(in.Namespaces))
	cases := generator.NewTestCaseGenerator(in.AllowDNS, in.BlockIP, namespaces, nil, nil).GenerateTestCases()
	var out []testCase
	for _, c := range cases {
		s := newState(in)
		t := testCase{Description: c.Description}
		for _, st := range c.Steps {
			done := step{}
			for _, a := range st.Actions {
				done.Actions = append(done.Actions, s.act(a)...)
			}
			done.Pods, done.Allowed = s.names(), s.allowed()
			t.Steps = append(t.Steps, done)
		}
		out = append(out, t)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "cyclonus:", err)
	os.Exit(1)
}

// state is what a case has made of the containers and policies so far.
type state struct {
	in         input
	namespaces map[string]map[string]string
	pods       map[string]pod
	spare      []pod
	policies   map[string]*networkingv1.NetworkPolicy
}

func newState(in input) *state {
	s := &state{in: in, namespaces: maps.Clone(in.Namespaces), pods: map[string]pod{}, spare: in.Spare,
		policies: map[string]*networkingv1.NetworkPolicy{}}
	for _, p := range in.Pods {
		s.pods[p.Namespace+"/"+p.Name] = p
	}
	return s
}

func (s *state) names() []string { return slices.Sorted(maps.Keys(s.pods)) }

// act does what a step says, and returns it in the words of the output.
func (s *state) act(a *generator.Action) []action {
	switch {
	case a.CreatePolicy != nil:
		return s.put(a.CreatePolicy.Policy)
	case a.UpdatePolicy != nil:
		return s.put(a.UpdatePolicy.Policy)
	case a.DeletePolicy != nil:
		key := a.DeletePolicy.Namespace + "/" + a.DeletePolicy.Name
		delete(s.policies, key)
		return []action{{Delete: key}}
	case a.CreateNamespace != nil:
		s.namespaces[a.CreateNamespace.Namespace] = a.CreateNamespace.Labels
		return []action{{Namespace: a.CreateNamespace.Namespace, Labels: a.CreateNamespace.Labels}}
	case a.SetNamespaceLabels != nil:
		s.namespaces[a.SetNamespaceLabels.Namespace] = a.SetNamespaceLabels.Labels
		return []action{{Namespace: a.SetNamespaceLabels.Namespace, Labels: a.SetNamespaceLabels.Labels}}
	case a.DeleteNamespace != nil:
		name := a.DeleteNamespace.Namespace
		delete(s.namespaces, name)
		var done []action
		for _, key := range s.names() {
			if strings.HasPrefix(key, name+"/") {
				delete(s.pods, key)
				done = append(done, action{DeletePod: key})
			}
		}
		return append(done, action{DeleteNamespace: name})
	case a.CreatePod != nil:
		key := a.CreatePod.Namespace + "/" + a.CreatePod.Pod
		s.pods[key] = pod{a.CreatePod.Namespace, a.CreatePod.Pod, a.CreatePod.Labels, s.spare[0].IPs}
		s.spare = s.spare[1:]
		return []action{{Pod: key, Labels: a.CreatePod.Labels}}
	case a.SetPodLabels != nil:
		key := a.SetPodLabels.Namespace + "/" + a.SetPodLabels.Pod
		p := s.pods[key]
		p.Labels = a.SetPodLabels.Labels
		s.pods[key] = p
		return []action{{Pod: key, Labels: p.Labels}}
	case a.DeletePod != nil:
		key := a.DeletePod.Namespace + "/" + a.DeletePod.Pod
		delete(s.pods, key)
		return []action{{DeletePod: key}}
	case a.ReadNetworkPolicies != nil:
		return nil
	}
	fail(fmt.Errorf("an action that is none: %+v", a))
	return nil
}

func (s *state) put(p *networkingv1.NetworkPolicy) []action {
	p.APIVersion, p.Kind = "networking.k8s.io/v1", "NetworkPolicy" // some cases leave that out
	s.policies[p.Namespace+"/"+p.Name] = p
	return []action{{Put: p}}
}

// probeKey names a probe: from to family protocol/port.
func probeKey(from, to string, family int, p port) string {
	return fmt.Sprintf("%s %s %d %s/%d", from, to, family, strings.ToLower(string(p.Protocol)), p.Port)
}

// allowed are the probes that cyclonus' matcher lets pass, each family by itself.
func (s *state) allowed() []string {
	m := matcher.BuildNetworkPolicies(false, slices.Collect(maps.Values(s.policies)))
	var keys []string
	for _, from := range s.names() {
		for _, to := range s.names() {
			for family := range s.pods[from].IPs {
				for _, p := range s.in.Ports {
					if m.IsTrafficAllowed(s.traffic(from, to, family, p)).IsAllowed() {
						keys = append(keys, probeKey(from, to, family, p))
					}
				}
			}
		}
	}
	return keys
}

func (s *state) traffic(from, to string, family int, p port) *matcher.Traffic {
	return &matcher.Traffic{
		Source: s.peer(from, family), Destination: s.peer(to, family),
		ResolvedPort: p.Port, ResolvedPortName: p.Name, Protocol: p.Protocol,
	}
}

func (s *state) peer(key string, family int) *matcher.TrafficPeer {
	p := s.pods[key]
	return &matcher.TrafficPeer{IP: p.IPs[family], Internal: &matcher.InternalPeer{
		PodLabels: p.Labels, NamespaceLabels: s.namespaces[p.Namespace], Namespace: p.Namespace,
	}}
}
