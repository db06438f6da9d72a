package names

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
)

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
