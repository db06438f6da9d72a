// Package backend plans, purely, how packets reach each peer: a lease in, kernel objects out. One file a kind.
package backend

import (
	"encoding/json"
	"net/netip"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// Underlay is the link that carries the outer packets.
type Underlay struct {
	Link  string
	MTU   int
	Addrs []netip.Addr // the host's address of each family in use on the link, IPv4 before IPv6
}

// Backend plans for one kind of data path. It does no I/O and keeps nothing.
type Backend interface {
	// MTU is what containers may send at most, in bytes.
	MTU() int
	// Data is what the own lease's endpoint of family f says to peers; nil for nothing.
	Data(f subnet.Family) json.RawMessage
	// Local are the objects that the host needs to receive, given its own endpoint.
	Local(own subnet.Endpoint) []kernel.Object
	// Peer are the objects that reach one endpoint of a peer. near: no gateway stands between the hosts.
	Peer(peer subnet.Endpoint, near bool) ([]kernel.Object, error)
}
