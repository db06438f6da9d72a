package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"

	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
)

// netnsIdentity is what a namespace is to policies.
type netnsIdentity struct {
	namespace, name string
	labels, ports   []string
}

// args are CNI_ARGS that say so.
func (n *netnsIdentity) args(name string) ([][2]string, error) {
	labels := map[string]string{}
	var pairs []string
	for _, label := range n.labels {
		key, value, ok := strings.Cut(label, "=")
		if !ok {
			return nil, fmt.Errorf("--label: %q is not KEY=VALUE", label)
		}
		labels[key] = value
		pairs = append(pairs, key+":"+value)
	}
	if err := policy.ValidateLabels(labels); err != nil {
		return nil, fmt.Errorf("--label: %w", err)
	}
	for _, port := range n.ports {
		if _, err := identity.ParsePort(port); err != nil {
			return nil, fmt.Errorf("--port: %q: %w", port, err)
		}
	}
	if n.namespace != "" && !identity.ValidNamespace(n.namespace) {
		return nil, fmt.Errorf("--namespace: %w", policy.ValidateNamespace(n.namespace))
	}
	if n.name = cmp.Or(n.name, name); !policy.ValidName(n.name) {
		return nil, fmt.Errorf("--name: %q must begin with a letter or a digit and go on with those, _, . or -", n.name)
	}
	args := [][2]string{{"IgnoreUnknown", "1"}}
	for _, arg := range [][2]string{
		{"NAMESPACE", n.namespace}, {"NAME", n.name}, {"LABELS", strings.Join(pairs, ",")}, {"PORTS", strings.Join(n.ports, ",")},
	} {
		if arg[1] != "" {
			args = append(args, arg)
		}
	}
	return args, nil
}

// netnsName refuses a name that is no name of a container, which it becomes a part of.
func netnsName(name string) (string, error) {
	if err := utils.ValidateContainerID(name); err != nil {
		return "", usageError{fmt.Errorf("the name %q must begin with a letter or a digit and go on with those, _, . or -", name)}
	}
	return name, nil
}
