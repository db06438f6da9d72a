package names

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet"
)

// How far a host is. What is near is answered first.
const (
	here   = iota // this host
	onLink        // its address is in a subnet of this host's links
	far
	distances
)

// Index is what is known of names: which endpoints have them. Its methods may be called at any time.
type Index struct {
	mu     sync.RWMutex
	spaces map[string]map[string]*holders // by namespace and name
	known  map[string]*endpoint           // by key, below endpoints/
	byAddr map[netip.Addr]*endpoint
	round  uint64 // of answers: those of another are made anew

	own    *subnet.Record
	leases map[string]*subnet.Record // of peers, by their keys
	subs   *bart.Lite                // those of all hosts
	nearby map[string]int            // leases by which a host is near, by its id
	links  []netip.Prefix            // of this host's underlay
}

// endpoint is one that counts.
type endpoint struct {
	key       string
	namespace string
	host      string
	local     bool
	revision  int64 // etcd's, by which it was written; 0: not known yet, so that it is the last
	called    []policy.Called
	ips       []netip.Addr
}

// holders are the endpoints that have a name, or claim it.
type holders struct {
	all    []*endpoint
	answer atomic.Pointer[answer] // nil: to be made
}

// answer is who has the name: whoever wrote it first, and those who share it.
type answer struct {
	round uint64
	owner string
	addrs [2][distances][]netip.Addr // IPv4 and IPv6
}

// NewIndex returns one that knows nothing.
func NewIndex() *Index {
	return &Index{
		spaces: map[string]map[string]*holders{}, known: map[string]*endpoint{}, byAddr: map[netip.Addr]*endpoint{},
		leases: map[string]*subnet.Record{}, subs: new(bart.Lite), nearby: map[string]int{},
	}
}

// Put has another host's endpoint known, by its key below endpoints/, which etcd has since a revision; 0: it is not known which.
func (x *Index) Put(key string, ep policy.Endpoint, revision int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if was := x.known[key]; was == nil || !was.local {
		x.put(key, ep, revision, false)
	}
}

// Revise says since which revision etcd has an endpoint as it is, this host's own too.
func (x *Index) Revise(key string, revision int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.known[key]; e != nil && e.revision != revision {
		e.revision = revision
		for _, c := range e.called {
			x.spaces[e.namespace][c.Name].answer.Store(nil)
		}
	}
}

// Delete has another host's endpoint known no more.
func (x *Index) Delete(key string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.known[key]; e != nil && !e.local {
		x.remove(e)
	}
}

// Local says which endpoints this host has, by the keys that they have in etcd, or will.
func (x *Index) Local(all map[string]policy.Endpoint) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for key, e := range x.known {
		if _, ok := all[key]; e.local && !ok {
			x.remove(e)
		}
	}
	for key, ep := range all {
		was := x.known[key]
		if was != nil && was.local && was.namespace == ep.Namespace && slices.Equal(was.called, ep.Called()) && slices.Equal(was.ips, ep.IPs) {
			continue
		}
		x.put(key, ep, 0, true)
	}
}

func (x *Index) put(key string, ep policy.Endpoint, revision int64, local bool) {
	if was := x.known[key]; was != nil {
		x.remove(was)
	}
	e := &endpoint{key: key, local: local, revision: revision, called: ep.Called(), ips: slices.Clone(ep.IPs)}
	e.namespace, e.host, _, _ = policy.ParseEndpointKey(key)
	x.known[key] = e
	for _, ip := range e.ips {
		x.byAddr[ip] = e
	}
	space := x.spaces[e.namespace]
	if space == nil {
		space = map[string]*holders{}
		x.spaces[e.namespace] = space
	}
	for _, c := range e.called {
		h := space[c.Name]
		if h == nil {
			h = &holders{}
			space[c.Name] = h
		}
		h.all = append(h.all, e)
		h.answer.Store(nil)
	}
}

func (x *Index) remove(e *endpoint) {
	delete(x.known, e.key)
	for _, ip := range e.ips {
		if x.byAddr[ip] == e {
			delete(x.byAddr, ip)
		}
	}
	space := x.spaces[e.namespace]
	for _, c := range e.called {
		h := space[c.Name]
		i := slices.Index(h.all, e)
		h.all[i] = h.all[len(h.all)-1]
		h.all[len(h.all)-1] = nil
		h.all = h.all[:len(h.all)-1]
		if h.answer.Store(nil); len(h.all) == 0 {
			delete(space, c.Name)
		}
	}
	if len(space) == 0 {
		delete(x.spaces, e.namespace)
	}
}

// Own says which lease this host has.
func (x *Index) Own(own *subnet.Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.own = own
}

// Peers says which leases of peers changed, by key; nil: the peer is gone.
func (x *Index) Peers(changed map[string]*subnet.Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for key, r := range changed {
		if was := x.leases[key]; was != nil {
			for _, s := range was.Subnets() {
				x.subs.Delete(s.Masked())
			}
			x.near(was, -1)
			delete(x.leases, key)
		}
		if r != nil {
			for _, s := range r.Subnets() {
				x.subs.Insert(s.Masked())
			}
			x.near(r, 1)
			x.leases[key] = r
		}
	}
}

// Links says which subnets this host's links are in: hosts with addresses there are near.
func (x *Index) Links(links []netip.Prefix) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if slices.Equal(x.links, links) {
		return
	}
	x.links, x.nearby = slices.Clone(links), map[string]int{}
	for _, r := range x.leases {
		x.near(r, 1)
	}
	x.round++
}

// near counts, by one more or less, the leases by which a host is near.
func (x *Index) near(r *subnet.Record, by int) {
	for _, e := range r.Endpoints {
		if slices.ContainsFunc(x.links, func(p netip.Prefix) bool { return p.Contains(e.PublicIP) }) {
			if x.nearby[r.HostID] += by; x.nearby[r.HostID] == 0 {
				delete(x.nearby, r.HostID)
			}
			x.round++
			return
		}
	}
}

// owner is who shares a name with an endpoint that is called so: the service, or what runs on its host.
func (e *endpoint) owner(name string) string {
	for _, c := range e.called {
		if c.Name == name && c.Owner != "" {
			return c.Owner
		}
	}
	return "host " + e.host
}

// answerOf makes the answer, if it is not there.
func (x *Index) answerOf(name string, h *holders) *answer {
	if a := h.answer.Load(); a != nil && a.round == x.round {
		return a
	}
	first := slices.MinFunc(h.all, older)
	a := &answer{round: x.round, owner: first.owner(name)}
	for _, e := range h.all {
		if e != first && e.owner(name) != a.owner {
			continue
		}
		at := far
		switch {
		case e.local:
			at = here
		case x.nearby[e.host] > 0:
			at = onLink
		}
		for _, ip := range e.ips {
			f := family(ip)
			a.addrs[f][at] = append(a.addrs[f][at], ip)
		}
	}
	h.answer.Store(a)
	return a
}

// older orders endpoints by when they took their names: etcd's revisions, so that all hosts agree.
func older(a, b *endpoint) int {
	return cmp.Or(cmp.Compare(uint64(a.revision)-1, uint64(b.revision)-1), cmp.Compare(a.key, b.key)) // 0 is the last
}

func family(ip netip.Addr) int {
	if ip.Is4() {
		return 0
	}
	return 1
}

// Lookup returns the addresses of a family (0: IPv4, 1: IPv6) that a name in a namespace has, the nearest first, and of those that
// are as near any first; found is false if there is no such name.
func (x *Index) Lookup(namespace, name string, family int) (addrs []netip.Addr, found bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	h := x.spaces[namespace][name]
	if h == nil {
		return nil, false
	}
	a := x.answerOf(name, h)
	for _, some := range a.addrs[family] {
		if len(some) > 1 {
			i := rand.IntN(len(some))
			addrs = append(append(addrs, some[i:]...), some[:i]...)
		} else {
			addrs = append(addrs, some...)
		}
	}
	return addrs, true
}

// Holds says whether anything in a namespace has a name.
func (x *Index) Holds(namespace string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.spaces[namespace]) > 0
}

// NameOf is the name, and the namespace, by which an address is found; ok is false if it has none.
func (x *Index) NameOf(ip netip.Addr) (namespace, name string, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e := x.byAddr[ip]
	if e == nil {
		return "", "", false
	}
	for _, c := range e.called {
		if x.answerOf(c.Name, x.spaces[e.namespace][c.Name]).owner == e.owner(c.Name) {
			return e.namespace, c.Name, true
		}
	}
	return "", "", false
}

// Has says whether an endpoint with an address is known, by a name or not.
func (x *Index) Has(ip netip.Addr) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.byAddr[ip] != nil
}

// NamespaceOf is the namespace of the endpoint of this host's that has an address; empty: there is none.
func (x *Index) NamespaceOf(ip netip.Addr) string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if e := x.byAddr[ip]; e != nil && e.local {
		return e.namespace
	}
	return ""
}

// InNetwork says whether an address is in this host's subnets, or in another host's.
func (x *Index) InNetwork(ip netip.Addr) (own, others bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.own != nil && slices.ContainsFunc(x.own.Endpoints, func(e subnet.Endpoint) bool { return e.Subnet.Masked().Contains(ip) }) {
		return true, false
	}
	return false, x.subs.Contains(ip)
}

func (x *Index) size() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.known)
}

// mostContested names are told of.
const mostContested = 100

// contested are the names that somebody claims besides who has them.
func (x *Index) contested() []api.Contested {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all := []api.Contested{}
	for namespace, space := range x.spaces {
		for name, h := range space {
			if len(h.all) < 2 {
				continue
			}
			owner := x.answerOf(name, h).owner
			var others []string
			for _, e := range h.all {
				if o := e.owner(name); o != owner && !slices.Contains(others, o) {
					others = append(others, o)
				}
			}
			if len(others) > 0 {
				slices.Sort(others)
				all = append(all, api.Contested{Namespace: namespace, Name: name, Owner: owner, Others: others})
			}
		}
	}
	slices.SortFunc(all, func(a, b api.Contested) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return all[:min(len(all), mostContested)]
}
