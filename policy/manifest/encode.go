package manifest

import (
	"encoding/json"

	"github.com/overlayd/overlayd/policy"
)

// Object is a policy as Kubernetes' API has it, to be printed as JSON or YAML; [Set.Read] reads it back.
func Object(p policy.Policy) (map[string]any, error) {
	data, err := json.Marshal(p.Spec)
	if err != nil {
		return nil, err
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, err
	}
	for _, direction := range []string{"ingress", "egress"} {
		rules, _ := spec[direction].([]any)
		for _, rule := range rules {
			ports, _ := rule.(map[string]any)["ports"].([]any)
			for _, port := range ports {
				port := port.(map[string]any)
				if name, ok := port["name"]; ok { // one field of Kubernetes' has names and numbers
					port["port"] = name
					delete(port, "name")
				}
			}
		}
	}
	return map[string]any{
		"apiVersion": apiVersion, "kind": "NetworkPolicy",
		"metadata": map[string]any{"name": p.Name, "namespace": p.Namespace},
		"spec":     spec,
	}, nil
}

// List is several objects as one.
func List(objects []map[string]any) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": "List", "items": objects}
}

// NamespaceObject is a namespace as Kubernetes' API has it.
func NamespaceObject(n policy.Namespace) map[string]any {
	metadata := map[string]any{"name": n.Name}
	if len(n.Labels) > 0 {
		metadata["labels"] = n.Labels
	}
	if n.Default != "" {
		metadata["annotations"] = map[string]string{DefaultAnnotation: string(n.Default)}
	}
	return map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
}
