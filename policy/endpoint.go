// Package policy says what containers are, which of them a policy means, and what it lets them do: the API
// networking.k8s.io/v1 NetworkPolicy, read strictly, with the defaults and the validation of Kubernetes' API server. It is pure,
// and small: the CNI plugin has it too.
package policy

import "net/netip"

// Identity is what a container is to policies. It comes from whoever runs the container.
type Identity struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Ports     []NamedPort       `json:"ports,omitempty"`
}

// NamedPort is a port of a container's that policies may name.
type NamedPort struct {
	Name     string   `json:"name"`
	Port     uint16   `json:"port"`
	Protocol Protocol `json:"protocol"`
}

// Endpoint is an interface of a container's in the network.
type Endpoint struct {
	Identity
	IPs []netip.Addr `json:"ips"`
}
