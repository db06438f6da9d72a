package policy

// The types below are those of networking.k8s.io/v1, with the meaning that its documentation gives them.

// Policy is a NetworkPolicy, with all defaults filled in.
type Policy struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Spec      Spec   `json:"spec"`
}

// Spec says which endpoints of its namespace a policy isolates, in which directions, and what it allows nevertheless.
type Spec struct {
	PodSelector Selector      `json:"podSelector"`
	Ingress     []IngressRule `json:"ingress,omitempty"`
	Egress      []EgressRule  `json:"egress,omitempty"`
	PolicyTypes []Type        `json:"policyTypes"`
}

// Type is a direction, seen from the endpoint.
type Type string

// The directions.
const (
	Ingress Type = "Ingress"
	Egress  Type = "Egress"
)

// IngressRule allows what comes from one of its peers to one of its ports. No peers are all, and no ports too.
type IngressRule struct {
	Ports []Port `json:"ports,omitempty"`
	From  []Peer `json:"from,omitempty"`
}

// EgressRule allows what goes to one of its ports of one of its peers.
type EgressRule struct {
	Ports []Port `json:"ports,omitempty"`
	To    []Peer `json:"to,omitempty"`
}

// Protocol is TCP, UDP or SCTP.
type Protocol string

// The protocols that have ports.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// Port is one port, all from Port to EndPort, one that the endpoints name, or all of a protocol.
type Port struct {
	Protocol Protocol `json:"protocol"`
	Port     uint16   `json:"port,omitempty"`    // 0: Name, or all
	Name     string   `json:"name,omitempty"`    // in JSON of Kubernetes' it stands in "port"
	EndPort  uint16   `json:"endPort,omitempty"` // 0: Port alone
}

// Peer is either a block of addresses, or the endpoints that are selected: of the policy's own namespace if NamespaceSelector is
// nil, all of the namespaces if PodSelector is.
type Peer struct {
	PodSelector       *Selector `json:"podSelector,omitempty"`
	NamespaceSelector *Selector `json:"namespaceSelector,omitempty"`
	IPBlock           *IPBlock  `json:"ipBlock,omitempty"`
}

// IPBlock is the addresses of CIDR but those of Except.
type IPBlock struct {
	CIDR   string   `json:"cidr"`
	Except []string `json:"except,omitempty"`
}

// Selector selects by labels: all of what it says must be so. The empty one selects everything.
type Selector struct {
	MatchLabels      map[string]string `json:"matchLabels,omitempty"`
	MatchExpressions []Requirement     `json:"matchExpressions,omitempty"`
}

// Requirement is about the label of a key.
type Requirement struct {
	Key      string   `json:"key"`
	Operator Operator `json:"operator"`
	Values   []string `json:"values,omitempty"`
}

// Operator is how a label is compared.
type Operator string

// The operators. A label that is missing is not in any values.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Default is what counts for endpoints that no policy selects.
type Default string

// The defaults; Kubernetes has Allow alone.
const (
	Allow Default = "allow"
	Deny  Default = "deny"
)

// NetworkDefault is the value of the network's.
type NetworkDefault struct {
	Default Default `json:"default"`
}

// Namespace is what is known of a namespace besides its name. One that nobody has described exists too.
type Namespace struct {
	Name    string            `json:"name"`
	Labels  map[string]string `json:"labels,omitempty"`  // without NameLabel, which every namespace has
	Default Default           `json:"default,omitempty"` // empty: the network's
}

// NameLabel is the label that every namespace has, with its name.
const NameLabel = "kubernetes.io/metadata.name"
