package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// claims say to whom belongs what only one peer can have: the MAC on a vxlan link, by which the kernel finds the host. Of
// several that claim one, the host with the oldest lease has it.
type claims struct {
	links   []string // by their number in an id
	owner   map[uint64]string
	rivals  map[uint64][]string // all that claim it, if they are several
	touched []uint64            // whose rivals changed
}

// newClaims has room for n peers.
func newClaims(n int) claims {
	return claims{owner: make(map[uint64]string, n), rivals: map[uint64][]string{}}
}

// id is a MAC of 48 bits and the number of a link in one word: there is one for each peer.
func (c *claims) id(f kernel.FDB) (id uint64) {
	link := slices.Index(c.links, f.Link)
	if link < 0 {
		link = len(c.links)
		c.links = append(c.links, f.Link)
	}
	for _, b := range f.MAC {
		id = id<<8 | uint64(b)
	}
	return uint64(link)<<48 | id
}

// exclusive are the objects of a peer that no other peer can have.
func exclusive(objs []kernel.Object) func(func(kernel.FDB) bool) {
	return func(yield func(kernel.FDB) bool) {
		for _, o := range objs {
			if f, ok := o.(kernel.FDB); ok && !yield(f) {
				return
			}
		}
	}
}

func (c *claims) add(key string, f kernel.FDB) {
	id := c.id(f)
	owner, ok := c.owner[id]
	switch list := c.rivals[id]; {
	case !ok:
		c.owner[id] = key
	case owner == key && list == nil:
	case list == nil:
		c.rivals[id] = []string{owner, key}
		c.touched = append(c.touched, id)
	default:
		if !slices.Contains(list, key) {
			c.rivals[id] = append(list, key)
		}
		c.touched = append(c.touched, id)
	}
}

func (c *claims) remove(key string, f kernel.FDB) {
	id := c.id(f)
	if list := c.rivals[id]; list != nil {
		c.rivals[id] = slices.DeleteFunc(list, func(k string) bool { return k == key })
		c.touched = append(c.touched, id)
	} else if c.owner[id] == key {
		delete(c.owner, id)
	}
}

// settle gives what was touched to the oldest, and returns all who claim what changed hands.
func (c *claims) settle(peers map[string]*subnet.Record) (concerned []string) {
	for _, id := range c.touched {
		list, ok := c.rivals[id]
		if !ok {
			continue // settled before
		}
		if len(list) == 0 {
			delete(c.owner, id)
			delete(c.rivals, id)
			continue
		}
		first := slices.MinFunc(list, func(a, b string) int {
			if older(peers[a], peers[b]) {
				return -1
			}
			return 1
		})
		if first != c.owner[id] {
			c.owner[id] = first
			concerned = append(concerned, list...)
		}
		if len(list) == 1 {
			delete(c.rivals, id)
		}
	}
	c.touched = nil
	return concerned
}

// unclaim forgets what a peer claims that goes away or becomes another.
func (a *Agent) unclaim(key string, before *subnet.Record) {
	if before == nil || !a.programmed || reservation(*before) {
		return
	}
	_, objs, err := a.planner.peer(a.own.Lease, before.Lease, func(netip.Addr) bool { return false })
	if err != nil {
		return
	}
	for f := range exclusive(objs) {
		a.claims.remove(key, f)
	}
}

// claim judges what several peers claim: those who do not get it are not reached. It adds the peers whom that concerns
// to the ones that are planned.
func (a *Agent) claim(keys []string, ways []way) ([]string, []way) {
	for i, key := range keys {
		if _, refused := ways[i].err.(refusal); refused {
			a.unclaim(key, a.peers[key])
		}
		for f := range exclusive(ways[i].objs) {
			a.claims.add(key, f)
		}
	}
	if more := a.claims.settle(a.peers); len(more) > 0 {
		slices.Sort(more)
		more = slices.DeleteFunc(slices.Compact(more), func(key string) bool {
			_, planned := slices.BinarySearch(keys, key)
			return planned
		})
		keys, ways = append(keys, more...), append(ways, a.reach(more)...)
	}
	a.meetTwins(keys, ways)
	if len(a.claims.rivals) == 0 {
		return keys, ways
	}
	for i, key := range keys {
		for f := range exclusive(ways[i].objs) {
			if owner := a.claims.owner[a.claims.id(f)]; owner != key {
				ways[i] = way{err: duplicate(f.MAC, a.peers[owner])}
				break
			}
		}
	}
	return keys, ways
}

// meetTwins judges peers that claim what this host has. If the host's lease is the younger one, it has a problem.
func (a *Agent) meetTwins(keys []string, ways []way) {
	for i, key := range keys {
		same, is := ways[i].err.(backend.OwnMACError)
		if !is {
			delete(a.twins, key)
		} else if older(a.own, a.peers[key]) {
			a.twins[key] = ""
			ways[i].err = duplicate(same.MAC, a.own)
		} else {
			a.twins[key] = duplicate(same.MAC, a.peers[key]).Error()
		}
	}
	for _, key := range slices.Sorted(maps.Keys(a.twins)) {
		if text := a.twins[key]; text != "" {
			a.complain(problemIdentity, text)
			return
		}
	}
	a.settle(problemIdentity)
}

// aged adds the peers that claim what this host has, if its lease is not as old as it was.
func (a *Agent) aged(before *subnet.Record, keys []string) []string {
	if before == nil || before.CreateRevision == a.own.CreateRevision || len(a.twins) == 0 {
		return keys
	}
	keys = slices.AppendSeq(keys, maps.Keys(a.twins))
	slices.Sort(keys)
	return slices.Compact(keys)
}

// duplicate is the error that a MAC is another host's.
func duplicate(mac kernel.MAC, owner *subnet.Record) error {
	at := ""
	for _, e := range owner.Endpoints {
		if at == "" {
			at = " at " + e.PublicIP.String()
		}
	}
	return fmt.Errorf("VtepMAC %s is that of %s%s, whose lease is older: give the younger one an identity of its own (stop overlayd there, remove its state directory, start it again)",
		mac, hostName(owner), at)
}
