// Package api is what overlayd says of itself: its types, the server on the unix socket, the client, and health
// and metrics over HTTP.
package api

import "time"

// Status is the answer to GET /v1/status.
type Status struct {
	Version  string    `json:"version"`
	HostID   string    `json:"hostID"`
	Host     string    `json:"host"`
	Started  time.Time `json:"started"`
	Ready    bool      `json:"ready"`
	Degraded bool      `json:"degraded"` // traffic flows, but something needs attention
	Stage    string    `json:"stage"`    // one line: what the daemon is doing or waiting for
	Problems []string  `json:"problems"` // of the host, one line each; those of peers and objects are there; never null

	Network  string   `json:"network"` // the configuration in force, as JSON without its PSK; empty until known
	Backend  string   `json:"backend"`
	Subnets  []string `json:"subnets"`
	Underlay string   `json:"underlay"` // link name
	PublicIP []string `json:"publicIPs"`
	MTU      int      `json:"mtu"`

	Lease    Lease    `json:"lease"`
	Etcd     Etcd     `json:"etcd"`
	Kernel   Kernel   `json:"kernel"`
	Guard    Guard    `json:"guard"`
	Policy   Policy   `json:"policy"`
	FastPath FastPath `json:"fastPath"`
	Peers    []Peer   `json:"peers"`

	Names     *Names     `json:"names,omitempty"`     // null: they are not answered
	WireGuard *WireGuard `json:"wireguard,omitempty"` // null: the host has no such link

	// Networks are those with a name, by it. All else is of the network that has none, but for Ready, Stage and Problems.
	Networks []Network `json:"networks,omitempty"`
}

// Lease is the state of the own lease.
type Lease struct {
	State   string     `json:"state"` // waiting, claiming, held, taken
	Reason  string     `json:"reason,omitempty"`
	Expires *time.Time `json:"expires"` // null: unknown, or it does not expire
}

// Etcd is the state of the connection to etcd.
type Etcd struct {
	Endpoints []string `json:"endpoints"`
	Connected bool     `json:"connected"`
	Error     string   `json:"error,omitempty"`
	Revision  int64    `json:"revision"`
}

// Kernel is how far the kernel is from what it should be.
type Kernel struct {
	InStep  bool           `json:"inStep"`
	Objects map[string]int `json:"objects"` // desired, by kind
	Pending int            `json:"pending"`
	Healed  map[string]int `json:"healed"`
	Failed  []string       `json:"failed"` // object: error; at most 100
}

// Guard is what keeps out what nobody of the overlay sends.
type Guard struct {
	Parts   []string          `json:"parts"`   // that are wanted
	Missing string            `json:"missing"` // why they are not there; empty: they are
	Dropped map[string]uint64 `json:"dropped"` // packets, by the reason
}

// Peer is another host's lease as this host uses it.
type Peer struct {
	HostID    string        `json:"hostID"`
	Host      string        `json:"host"`
	Subnets   []string      `json:"subnets"`
	PublicIPs []string      `json:"publicIPs"`
	Backend   string        `json:"backend"`
	Path      string        `json:"path"`              // vxlan, direct, host-gw, wireguard; empty: not reached
	Fast      []FastPackets `json:"fast,omitempty"`    // of each of Subnets
	Outside   bool          `json:"outside,omitempty"` // it is no host of the network, but a peer that calls in by wireguard
	Error     string        `json:"error,omitempty"`
}
