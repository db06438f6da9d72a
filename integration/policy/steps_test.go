package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// apply applies documents as a user does, and lets the world know. The namespace is that of -n, if not empty.
func (r *rig) apply(ns, document string) {
	r.t.Helper()
	if !r.paper {
		args := []string{"policy", "apply", "-f", "-"}
		if ns != "" {
			args = append(args, "-n", ns)
		}
		r.must(document, args...)
		r.markStep()
	}
	if err := r.world.read(ns, document); err != nil {
		r.t.Fatal(err)
	}
}

// markStep marks a step that was done by other means than apply.
func (r *rig) markStep() {
	r.t.Helper()
	if r.marker != nil {
		r.must(r.marker.next(), "policy", "apply", "-f", "-")
	}
}

// remove deletes policies by namespace/name.
func (r *rig) remove(keys ...string) {
	r.t.Helper()
	defer r.markStep()
	for _, key := range keys {
		ns, name, _ := strings.Cut(key, "/")
		if !r.paper {
			r.must("", "policy", "delete", "-n", ns, name)
		}
		delete(r.world.policies, key)
	}
}

// reset leaves no policy, and gives everything the labels that it had.
func (r *rig) reset(labels map[*pod]map[string]string) {
	r.t.Helper()
	r.remove(slices.Sorted(maps.Keys(r.world.policies))...)
	for p, l := range labels {
		p.relabel(l)
	}
}

// labelNamespace gives a namespace labels in place of those that it has.
func (r *rig) labelNamespace(ns string, labels map[string]string) {
	r.t.Helper()
	args := []string{"namespaces", "label", ns}
	for k := range r.world.namespaces[ns] {
		if _, stays := labels[k]; !stays {
			args = append(args, k+"-")
		}
	}
	for k, v := range labels {
		if r.world.namespaces[ns][k] != v {
			args = append(args, k+"="+v)
		}
	}
	if len(args) > 3 && !r.paper {
		r.must("", args...)
	}
	r.world.namespaces[ns], r.loose = maps.Clone(labels), true
}

// leave takes a container off its host.
func (r *rig) leave(key string) {
	r.t.Helper()
	r.loose = true
	r.pods = slices.DeleteFunc(slices.Clone(r.pods), func(p *pod) bool {
		if p.key() == key && !r.paper {
			p.detach()
		}
		return p.key() == key
	})
}

// netpolText is the text of a policy; spec is YAML in one line.
func netpolText(ns, name, spec string) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: %s}\nspec: %s\n---\n", name, ns, spec)
}

// check probes each pair, and from and to outside, against the oracle.
func (r *rig) check(what string) {
	r.t.Helper()
	r.expect(what, r.everyPair(), r.world.allows)
}

// everyPair is pairs, and what the containers have to do with somebody outside, who comes by their own addresses.
func (r *rig) everyPair() []probe {
	all := r.pairs()
	for _, p := range r.pods {
		for family := range p.addrs {
			for _, s := range services {
				all = append(all, probe{p, r.outside, family, s.proto, s.port}, probe{r.outside, p, family, s.proto, s.port})
			}
		}
	}
	return all
}
