// Package compile makes of policies and endpoints what a kernel is to have: groups of local addresses, and for each what it lets
// pass. It is pure, and knows nothing of nftables. Each change costs what it changes.
package compile

import (
	"net/netip"

	"github.com/overlayd/overlayd/policy"
)

// GroupID names a group: the local addresses that the same policies isolate in one direction. Its first letter is i of ingress or
// e of egress; what follows is fit for the name of a chain.
type GroupID string

// Match is something that a group lets pass: what comes from addresses (of ingress) or goes to them (of egress), to ports.
type Match struct {
	From, To    netip.Addr // both ends of a range; the same for one address; invalid: everybody, of both families
	Proto       uint8      // IPPROTO_*; 0: all, those without ports too
	First, Last uint16     // of the ports; 0: all
}

// Sides are the groups of a local address; empty: it is not isolated in that direction.
type Sides struct {
	In, Out GroupID
}

// Change is what has to be done in the kernel, all in one transaction.
type Change struct {
	Make   map[GroupID][]Match // groups that are new, with all that they let pass
	Add    map[GroupID][]Match // to groups that are there
	Remove map[GroupID][]Match
	Drop   []GroupID            // that nobody is in any more
	Set    map[netip.Addr]Sides // local addresses that are new, or in other groups than before
	Gone   []netip.Addr         // that are not local any more
	Narrow bool                 // something may be denied now that was not before: connections have to be judged again
}

// Endpoint is a local one or a peer's, by a key of the caller's.
type Endpoint struct {
	policy.Endpoint
	Local bool
}
