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
	From  Source
}

// Source is where an endpoint is from. It is kept for the caller, and means nothing here.
type Source struct {
	Lease int64  // etcd's
	Sum   uint64 // of what was read
}

// Compiler has policies, namespaces and endpoints, and says what follows. What it is told counts from the next Flush on; all
// that it answers is as of the last. Calls must not overlap.
type Compiler struct {
	endpoints  map[string]*endpoint
	addrs      table
	claims     map[addr][]*endpoint // all, in the order in which they came to it, where they are more than one
	classes    map[string]*class
	namespaces map[string]*namespace
	policies   map[string]*compiled
	def        policy.Default
	terms      map[string]*term
	blocks     map[string]*block
	index      index
	groups     map[string]*group
	made       uint64 // groups, ever
	held       bool   // see Hold

	// What the last Flush left.
	locals   map[*class]bool // those of local endpoints
	local    map[addr]sides
	isolated int

	pending // What the next one has to do.
}

// pending is what has happened since the last Flush.
type pending struct {
	touched    map[addr]*class // whose owner may be another: of which class it was
	fresh      []*class
	empty      map[*class]bool // may be
	regroup    map[*class]bool // whose local endpoints came or went
	policies   map[string]*policy.Policy
	namespaces map[string]*policy.Namespace
	def        *policy.Default
	delta      map[*group]map[Match]int8 // what groups gain and lose
	drop       []GroupID
}

func newPending() pending {
	return pending{
		touched: map[addr]*class{}, empty: map[*class]bool{}, regroup: map[*class]bool{},
		policies: map[string]*policy.Policy{}, namespaces: map[string]*policy.Namespace{}, delta: map[*group]map[Match]int8{},
	}
}

// New returns a Compiler that knows nothing yet: everything is allowed.
func New() *Compiler {
	return &Compiler{
		endpoints: map[string]*endpoint{}, addrs: newTable(), claims: map[addr][]*endpoint{},
		classes: map[string]*class{}, namespaces: map[string]*namespace{}, policies: map[string]*compiled{},
		terms: map[string]*term{}, blocks: map[string]*block{}, index: index{}, groups: map[string]*group{},
		locals: map[*class]bool{}, local: map[addr]sides{}, pending: newPending(),
	}
}

// Hold has Flush not say what groups let pass until Full is called: a kernel that has nothing gets all of it then.
func (c *Compiler) Hold() { c.held = true }

// SetPolicies puts policies in, by namespace/name, or others in their place, and takes out the removed ones. A policy that cannot
// be read is put in as one that selects all of its namespace in both directions and allows nothing.
func (c *Compiler) SetPolicies(changed map[string]policy.Policy, removed []string) {
	for _, key := range removed {
		c.pending.policies[key] = nil
	}
	for key, p := range changed {
		c.pending.policies[key] = &p
	}
}

// SetNamespace says what is known of a namespace; nil: nothing but its name.
func (c *Compiler) SetNamespace(name string, ns *policy.Namespace) {
	c.pending.namespaces[name] = ns
}

// SetDefault says what counts for endpoints that no policy selects, in namespaces that have no default of their own.
func (c *Compiler) SetDefault(d policy.Default) { c.pending.def = &d }

// Isolated is how many local endpoints are isolated in a direction at least.
func (c *Compiler) Isolated() int { return c.isolated }

// Enforcing says whether the network has any policy or a default deny.
func (c *Compiler) Enforcing() bool {
	if len(c.policies) > 0 || c.def == policy.Deny {
		return true
	}
	for _, ns := range c.namespaces {
		if ns.def == policy.Deny {
			return true
		}
	}
	return false
}
