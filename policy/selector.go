package policy

import (
	"maps"
	"slices"
)

// Matches says whether all that s asks for is so with labels. A label that is missing is NotIn any values.
func (s Selector) Matches(labels map[string]string) bool {
	for key, want := range s.MatchLabels {
		if have, ok := labels[key]; !ok || have != want {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		if !r.matches(labels) {
			return false
		}
	}
	return true
}

func (r Requirement) matches(labels map[string]string) bool {
	have, ok := labels[r.Key]
	switch r.Operator {
	case In:
		return ok && slices.Contains(r.Values, have)
	case NotIn:
		return !ok || !slices.Contains(r.Values, have)
	case Exists:
		return ok
	case DoesNotExist:
		return !ok
	}
	return false // no policy that was validated has another
}

// Selects says whether p is about the endpoint: it is of p's namespace, and its labels are those that p selects.
func (p Policy) Selects(id Identity) bool {
	return p.Namespace == id.Namespace && p.Spec.PodSelector.Matches(id.Labels)
}

// Isolates says whether p isolates what it selects in direction t.
func (p Policy) Isolates(t Type) bool { return slices.Contains(p.Spec.PolicyTypes, t) }

// LabelsOf are a namespace's labels as selectors see them: with [NameLabel], which says its name whatever anybody has written.
func LabelsOf(namespaces map[string]Namespace, name string) map[string]string {
	labels := maps.Clone(namespaces[name].Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[NameLabel] = name
	return labels
}

// DefaultOf is what counts in a namespace: its own default, or that of the network; with neither, Allow.
func DefaultOf(namespaces map[string]Namespace, network Default, name string) Default {
	for _, d := range []Default{namespaces[name].Default, network} {
		if d != "" {
			return d
		}
	}
	return Allow
}
