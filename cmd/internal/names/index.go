package names

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

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
