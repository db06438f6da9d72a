package api

// Network is the state of a network that has a name, as [Status] is that of the one that has none.
type Network struct {
	Name     string   `json:"name"`
	Ready    bool     `json:"ready"`
	Degraded bool     `json:"degraded"`
	Stage    string   `json:"stage"`
	Problems []string `json:"problems"` // never null

	Network  string   `json:"network"`
	Backend  string   `json:"backend"`
	Subnets  []string `json:"subnets"`
	Underlay string   `json:"underlay"`
	PublicIP []string `json:"publicIPs"`
	MTU      int      `json:"mtu"`

	Lease  Lease  `json:"lease"`
	Etcd   Etcd   `json:"etcd"`
	Kernel Kernel `json:"kernel"`
	Policy Policy `json:"policy"`
	Peers  []Peer `json:"peers"`

	WireGuard *WireGuard `json:"wireguard,omitempty"`
}

// Named is the part of a status that is of its network alone.
func (s Status) Named(name string) Network {
	return Network{
		Name: name, Ready: s.Ready, Degraded: s.Degraded, Stage: s.Stage, Problems: s.Problems,
		Network: s.Network, Backend: s.Backend, Subnets: s.Subnets, Underlay: s.Underlay, PublicIP: s.PublicIP, MTU: s.MTU,
		Lease: s.Lease, Etcd: s.Etcd, Kernel: s.Kernel, Policy: s.Policy, Peers: s.Peers, WireGuard: s.WireGuard,
	}
}
