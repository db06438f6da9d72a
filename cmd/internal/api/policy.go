package api

import (
	"time"

	"github.com/overlayd/overlayd/policy"
)

// Policy is how far policies are in force on this host.
type Policy struct {
	Enforcing  bool              `json:"enforcing"` // the network has a policy, or denies by default
	Policies   int               `json:"policies"`
	Namespaces int               `json:"namespaces"` // that somebody described
	Local      int               `json:"local"`      // endpoints of this host
	Isolated   int               `json:"isolated"`   // of them, in any direction
	Peers      int               `json:"peers"`      // endpoints of other hosts that are known here
	Published  int               `json:"published"`  // of this host, in etcd
	Refused    int               `json:"refused"`    // other hosts' endpoints that do not count
	Pending    []string          `json:"pending"`    // addresses of containers that may do nothing yet
	Unready    string            `json:"unready"`    // the setting policy-unready
	InStep     bool              `json:"inStep"`     // the kernel has what is to be in force
	Unreadable map[string]string `json:"unreadable"` // policies by ns/name, and what is wrong; they isolate, and allow nothing
	Doubted    string            `json:"doubted"`    // why what etcd holds is not believed; empty: it is
	Remembered bool              `json:"remembered"` // etcd has not been asked since the start: it is as last seen
	Routed     bool              `json:"routed"`     // there is no br_netfilter: containers of one bridge are routed to each other
	Error      string            `json:"error"`      // the last that went wrong, and still does
	Denied     Denied            `json:"denied"`     // packets, by direction, since the table was made
}

// Denied counts packets.
type Denied struct {
	Ingress uint64 `json:"ingress"`
	Egress  uint64 `json:"egress"`
}

// Endpoint is an interface of a container of this host's.
type Endpoint struct {
	policy.Endpoint
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	Ingress     bool   `json:"ingress"` // it is isolated in this direction
	Egress      bool   `json:"egress"`
	Published   bool   `json:"published"` // it is in etcd
	Pending     bool   `json:"pending"`   // it may do nothing yet
}

// Denials is the answer to GET /v1/denials.
type Denials struct {
	Logged bool     `json:"logged"` // the setting log-denied: without it there are counts alone
	Counts Denied   `json:"counts"`
	Last   []Denial `json:"last"` // the oldest first
}

// Denial is a packet that no policy allowed.
type Denial struct {
	At        time.Time `json:"at"`
	Direction string    `json:"direction"` // ingress or egress, seen from the container of this host that it is about
	From      Party     `json:"from"`
	To        Party     `json:"to"`
	Protocol  string    `json:"protocol"` // tcp, udp, sctp, icmp, or a number
	Port      uint16    `json:"port,omitempty"`
	Why       string    `json:"why"`
}

// Party is one end of a packet's way.
type Party struct {
	IP        string `json:"ip"`
	Namespace string `json:"namespace,omitempty"` // empty: it is no endpoint that is known here
	Name      string `json:"name,omitempty"`
}
