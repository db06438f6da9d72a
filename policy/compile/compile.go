// Package compile makes of policies and endpoints what a kernel is to have: groups of local addresses, and for each what it lets
// pass. It is pure, and knows nothing of nftables. Each change costs what it changes.
//
// An endpoint's addresses pass a group if a rule's peers mean it; which they are depends on its namespace, labels and named ports
// alone. Endpoints that have these in common are a class, which is judged once. So nothing is counted per element of a group:
// what an address adds to the groups follows from its class, and a change of it is what its old class added and its new one does.
package compile

import (
	"net/netip"

	"github.com/overlayd/overlayd/policy"
)

// GroupID names a group: the local addresses that the same policies isolate in one direction. Its first letter is i of ingress or
// e of egress; what follows is fit for the name of a chain. One that was dropped is not used again.
type GroupID string

// Match is something that a group lets pass: what comes from addresses (of ingress) or goes to them (of egress), to ports.
// Ranges of a group for the same protocol and ports do not overlap each other, but may contain single addresses.
type Match struct {
	From, To    netip.Addr // both ends of a range; the same for one address; invalid: everybody, of both families
	Proto       uint8      // IPPROTO_*; 0: all, those without ports too
	First, Last uint16     // of the ports, the same for one; 0: all
}

// Sides are the groups of a local address; empty: it is not isolated in that direction.
type Sides struct {
	In, Out GroupID
}

// Change is what has to be done in the kernel, all in one transaction. It is net: what came and went between two calls of Flush
// is not in it, and what is added was not there.
type Change struct {
	Make   map[GroupID][]Match // groups that are new, with all that they let pass
	Add    map[GroupID][]Match // to groups that are there
	Remove map[GroupID][]Match
	Drop   []GroupID            // that nobody is in any more
	Set    map[netip.Addr]Sides // local addresses that are new, or in other groups than before; not isolated ones too
	Gone   []netip.Addr         // that are not local any more
	Narrow bool                 // something may be denied now that was not before: connections have to be judged again.
	// What is new in Set does not count as having been allowed before: whoever sets it judges its connections in any case.
}

// Empty says whether there is nothing to do.
func (c *Change) Empty() bool {
	return len(c.Make)+len(c.Add)+len(c.Remove)+len(c.Drop)+len(c.Set)+len(c.Gone) == 0
}

// Endpoint is a local one or a peer's, by a key of the caller's.
type Endpoint struct {
	policy.Endpoint
	Local bool
}

// Compiler has policies, namespaces and endpoints, and says what follows. What it is told counts from the next Flush on; all
// that it answers is as of the last. Calls must not overlap.
type Compiler struct{}

// New returns a Compiler that knows nothing yet: everything is allowed.
func New() *Compiler { return &Compiler{} }

// SetPolicies puts policies in, by namespace/name, or others in their place, and takes out the removed ones. A policy that cannot
// be read is put in as one that selects all of its namespace in both directions and allows nothing.
func (c *Compiler) SetPolicies(changed map[string]policy.Policy, removed []string) {}

// SetNamespace says what is known of a namespace; nil: nothing but its name.
func (c *Compiler) SetNamespace(name string, ns *policy.Namespace) {}

// SetDefault says what counts for endpoints that no policy selects, in namespaces that have no default of their own.
func (c *Compiler) SetDefault(d policy.Default) {}

// SetEndpoint puts an endpoint in, or another in its place; nil takes it out. Of endpoints with the same address the one counts
// that is local, and of these the one that came to it last; when it goes, the other counts again. e is not kept.
func (c *Compiler) SetEndpoint(key string, e *Endpoint) {}

// Flush returns what has changed since the last Flush.
func (c *Compiler) Flush() Change { return Change{} }

// Full returns everything, as Make and Set, for a kernel that has nothing; as of the last Flush.
func (c *Compiler) Full() Change { return Change{} }

// Isolated is how many local endpoints are isolated in a direction at least.
func (c *Compiler) Isolated() int { return 0 }

// Enforcing says whether the network has any policy or a default deny.
func (c *Compiler) Enforcing() bool { return false }

// Needs says whether a policy's peers could mean the endpoint: whether other hosts must hear of it, wherever the policy's own
// endpoints are.
func (c *Compiler) Needs(ep policy.Endpoint) bool { return false }

// Reach says which namespaces the peers of the local groups can be in: all, or those, sorted.
func (c *Compiler) Reach() (all bool, namespaces []string) { return false, nil }

// Judge says whether a new connection from src may go to a port of dst, as far as the groups of local addresses have it: of a
// side that is not local it says nothing. A port of 0 is none, as with ICMP. What a host sends itself is not for it to judge.
func (c *Compiler) Judge(src, dst netip.Addr, proto uint8, port uint16) bool { return true }

// Why says, in a line, how Judge has come to what it says: with both endpoints' names, and the policies that isolate them.
func (c *Compiler) Why(src, dst netip.Addr, proto uint8, port uint16) string { return "" }
