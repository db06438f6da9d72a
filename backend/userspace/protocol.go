// Package userspace has links made that the kernel cannot make: by the process overlayd-tun, which it finds, or starts. The two
// talk by a unix socket, a request and an answer at a time, each a line of JSON.
package userspace

import "net/netip"

// SocketName is the name of the process's socket in the daemon's run directory.
const SocketName = "tun.sock"

// MaxLine is how long a line may be, in bytes: enough for the peers of the largest network that there can be.
const MaxLine = 16 << 20

// Request asks for one thing: what there is, where it asks for nothing else.
type Request struct {
	WireGuard *WireGuard `json:"wireguard,omitempty"` // make this link
	UDP       *UDP       `json:"udp,omitempty"`       // make this link, or bring it there
	Peers     *Peers     `json:"peers,omitempty"`     // change a link's peers
}

// WireGuard is a wireguard link. What else there is to set is set by /run/wireguard/NAME.sock, as wg(8) does.
type WireGuard struct {
	Name string `json:"name"`
	MTU  int    `json:"mtu"`
}

// UDP is a link for flannel's udp.
type UDP struct {
	Name  string     `json:"name"`
	Local netip.Addr `json:"local"`
	Port  uint16     `json:"port"`
	MTU   int        `json:"mtu"`

	// In answers only.
	Peers   []Peer            `json:"peers,omitempty"`
	Dropped map[string]uint64 `json:"dropped,omitempty"` // packets that were not carried, by the reason
}

// Peers are peers of a link for flannel's udp to put, and those to remove.
type Peers struct {
	Link string         `json:"link"`
	Put  []Peer         `json:"put,omitempty"`
	Gone []netip.Prefix `json:"gone,omitempty"`
}

// Peer is the way to a subnet.
type Peer struct {
	Subnet netip.Prefix `json:"subnet"`
	Host   netip.Addr   `json:"host"`
}

// Answer is what became of a request.
type Answer struct {
	Error string `json:"error,omitempty"`
	// What there is, where that was asked for.
	Version   string      `json:"version,omitempty"`  // of the process
	Resident  int         `json:"resident,omitempty"` // memory, in bytes
	WireGuard []WireGuard `json:"wireguard,omitempty"`
	UDP       []UDP       `json:"udp,omitempty"`
}
