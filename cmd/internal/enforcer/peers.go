package enforcer

import (
	"errors"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// refusal is why another host's endpoint does not count, as the metric overlayd_policy_endpoints_refused_total names it.
type refusal string

const (
	refusedKey     refusal = "key"     // it is not namespace/host id/address
	refusedValue   refusal = "value"   // it cannot be read, or its identity is not valid
	refusedHost    refusal = "host"    // no host with that id has a lease
	refusedAddress refusal = "address" // it is not in the host's subnet
	refusedLease   refusal = "lease"   // it is not on the etcd lease of the host's subnet
	refusedNumber  refusal = "number"  // as many of the host count as its subnet has addresses
)

var refusals = []refusal{refusedKey, refusedValue, refusedHost, refusedAddress, refusedLease, refusedNumber}

// mostBits is of how many bits of a subnet's addresses all could be endpoints: nobody has 65,536 containers.
const mostBits = 16

// peer is an endpoint as another host says, and why it does not count.
type peer struct {
	value    []byte
	lease    int64
	revision int64 // etcd's, by which it was written; 0: not known
	why      refusal
}

// peers are the endpoints that etcd holds of other hosts, and the leases by which they are believed. Those that count are the
// compiler's, with their source; there are many.
type peers struct {
	compiler *compile.Compiler
	names    names
	reader   policy.PublishedReader
	seed     maphash.Seed              // of the sources' sums
	known    map[string]int            // how many count, by host id
	all      int                       // of them
	refused  map[string]peer           // by key, below endpoints/
	leases   map[string]*subnet.Record // by their keys
	hosts    map[string][]string       // keys of leases, by host id
	count    func(refusal)             // for a metric
}

func newPeers(c *compile.Compiler, n names, count func(refusal)) *peers {
	return &peers{
		compiler: c, names: n, seed: maphash.MakeSeed(), known: map[string]int{}, refused: map[string]peer{},
		leases: map[string]*subnet.Record{}, hosts: map[string][]string{}, count: count,
	}
}

// hear takes in news of endpoints. Those of this host, own, are known from its records.
func (p *peers) hear(n etcdstore.News, own string) {
	if n.Listed {
		there := make(map[string]bool, len(n.Put))
		for _, kv := range n.Put {
			there[strings.TrimPrefix(kv.Key, etcdstore.EndpointDir)] = true
		}
		for key := range p.compiler.Sourced() {
			if !there[key] {
				p.forget(key)
			}
		}
		for key := range p.refused {
			if !there[key] {
				p.forget(key)
			}
		}
	}
	for _, kv := range n.Put {
		key := strings.TrimPrefix(kv.Key, etcdstore.EndpointDir)
		if hostOf(key) == own {
			p.forget(key)
			p.names.Revise(key, kv.ModRevision)
			continue
		}
		now := peer{value: kv.Value, lease: kv.LeaseID, revision: kv.ModRevision}
		if p.compiler.From(key) == p.source(now) {
			p.names.Revise(key, kv.ModRevision)
			continue
		}
		ep, why := p.examine(key, now)
		p.settle(key, now, ep, why)
	}
	for _, kv := range n.Deleted {
		p.forget(strings.TrimPrefix(kv.Key, etcdstore.EndpointDir))
	}
	for key, have := range p.refused {
		if host := hostOf(key); have.why == refusedNumber && p.known[host] < p.room(host) {
			p.again(key, have)
		}
	}
}

func hostOf(key string) string {
	_, rest, _ := strings.Cut(key, "/")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

// source tells one value from others.
func (p *peers) source(of peer) compile.Source {
	return compile.Source{Lease: of.lease, Sum: maphash.Bytes(p.seed, of.value) | 1}
}

func (p *peers) forget(key string) {
	delete(p.refused, key)
	if p.compiler.From(key) == (compile.Source{}) {
		return
	}
	p.compiler.SetEndpoint(key, nil)
	p.names.Delete(key)
	host := hostOf(key)
	p.all--
	if p.known[host]--; p.known[host] == 0 {
		delete(p.known, host)
	}
}

// settle has an endpoint count, or not.
func (p *peers) settle(key string, now peer, ep policy.Endpoint, why refusal) {
	if why != "" {
		p.forget(key)
		p.count(why)
		now.why = why
		p.refused[strings.Clone(key)] = now
		return
	}
	delete(p.refused, key)
	if p.compiler.From(key) == (compile.Source{}) {
		p.known[hostOf(key)]++
		p.all++
	}
	p.compiler.SetEndpoint(key, &compile.Endpoint{Endpoint: ep, From: p.source(now)})
	p.names.Put(strings.Clone(key), ep, now.revision)
}

// again judges a refused endpoint again.
func (p *peers) again(key string, have peer) {
	if ep, why := p.examine(key, have); why != have.why {
		p.settle(key, have, ep, why)
	}
}

// examine reads an endpoint and says why it does not count.
func (p *peers) examine(key string, now peer) (policy.Endpoint, refusal) {
	host, ep, err := p.reader.Read(key, now.value)
	switch {
	case errors.Is(err, policy.ErrKey):
		return ep, refusedKey
	case err != nil:
		return ep, refusedValue
	}
	if why := p.place(host, ep.IPs); why != "" {
		return ep, why
	}
	on := func(key string) bool {
		l := p.leases[key]
		return l.LeaseID == now.lease || l.LeaseID == 0 // whose subnet is reserved has a lease for them alone
	}
	switch {
	case !slices.ContainsFunc(p.hosts[host], on):
		return ep, refusedLease
	case p.known[host] >= p.room(host) && p.compiler.From(key) == (compile.Source{}):
		return ep, refusedNumber
	}
	return ep, ""
}

// room is how many endpoints of a host count at most.
func (p *peers) room(host string) (n int) {
	for _, key := range p.hosts[host] {
		for _, s := range p.leases[key].Subnets() {
			n += 1 << min(mostBits, s.Addr().BitLen()-s.Bits())
		}
	}
	return n
}

// place says why a host cannot have addresses.
func (p *peers) place(host string, ips []netip.Addr) refusal {
	leases := p.hosts[host]
	if len(leases) == 0 {
		return refusedHost
	}
	for _, ip := range ips {
		if !slices.ContainsFunc(leases, func(key string) bool { return within(ip, p.leases[key].Endpoints) }) {
			return refusedAddress
		}
	}
	return ""
}

func within(ip netip.Addr, endpoints []subnet.Endpoint) bool {
	return slices.ContainsFunc(endpoints, func(e subnet.Endpoint) bool { return e.Subnet.Masked().Contains(ip) })
}

// take takes in hosts' leases, by their keys, or that they are gone: nil. An endpoint that counts goes on to do so if it is in the
// subnet: when the etcd lease is another, and its old one ends, etcd deletes the key.
func (p *peers) take(changed map[string]*subnet.Record) {
	hosts := map[string]bool{}
	for key, now := range changed {
		if was := p.leases[key]; was != nil {
			hosts[was.HostID] = true
			delete(p.leases, key)
			if p.hosts[was.HostID] = slices.DeleteFunc(p.hosts[was.HostID], func(k string) bool { return k == key }); len(p.hosts[was.HostID]) == 0 {
				delete(p.hosts, was.HostID)
			}
		}
		if now != nil && now.HostID != "" { // flannel's hosts have no endpoints
			hosts[now.HostID] = true
			p.leases[key] = now
			p.hosts[now.HostID] = append(p.hosts[now.HostID], key)
		}
	}
	for key, from := range p.compiler.Sourced() {
		host := hostOf(key)
		if !hosts[host] {
			continue
		}
		ep := p.compiler.Endpoint(key)
		if why := p.place(host, ep.IPs); why != "" {
			_, value, _ := ep.Publish(host) // it can: it was
			p.settle(key, peer{value: value, lease: from.Lease}, ep, why)
		}
	}
	for key, have := range p.refused {
		if hosts[hostOf(key)] {
			p.again(key, have)
		}
	}
	if len(p.refused) == 0 {
		p.refused = map[string]peer{} // one that all were in, before the leases came, does not get smaller
	}
}

// number is how many count, and how many do not.
func (p *peers) number() (known, refused int) { return p.all, len(p.refused) }
