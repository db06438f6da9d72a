package firewall

import "github.com/overlayd/overlayd/backend/ports"

// Containers lets containers send from addresses of their own only, or at all: see package ports. Family is "bridge" for those
// that are on a bridge, "inet" for those that routes lead to.
type Containers struct{ Family string }

func (c Containers) place() string  { return c.Family }
func (c Containers) String() string { return shell(c.nft()) }
func (c Containers) nft() []string  { return ports.Rules(c.Family) }
func (Containers) guard()           {}

// FollowPorts has records say what containers may send, given what is in a set.
func (e *Elements) FollowPorts(records func(set string, there map[string]bool) (keys []string, err error)) {
	for _, s := range portSets() {
		e.Follow(s, func(there map[string]bool) ([]string, error) { return records(s.Name, there) })
	}
}

// LookAtPorts compares what containers may send with what the records say.
func (e *Elements) LookAtPorts() {
	for _, s := range portSets() {
		e.Look(s)
	}
}

func portSets() (sets []Set) {
	for family, routed := range map[string]bool{"inet": true, "bridge": false} {
		for _, name := range ports.Sets(routed) {
			sets = append(sets, Set{families[family], name})
		}
	}
	return sets
}
