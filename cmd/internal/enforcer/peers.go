package enforcer

import (
	"errors"
	"net/netip"
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
)

var refusals = []refusal{refusedKey, refusedValue, refusedHost, refusedAddress, refusedLease}

// peer is an endpoint as another host says.
type peer struct {
	value   string
	lease   int64
	host    string
	refused refusal // empty: it counts
}

// peers are the endpoints that etcd holds of other hosts, and the leases by which they are believed.
type peers struct {
	all     map[string]*peer           // by key, below endpoints/
	byHost  map[string]map[string]bool // keys of all
	leases  map[string]*subnet.Record  // by their keys
	hosts   map[string][]string        // keys of leases, by host id
	refused map[refusal]int            // of all
	count   func(refusal)              // for a metric
}

func newPeers(count func(refusal)) *peers {
	return &peers{
		all: map[string]*peer{}, byHost: map[string]map[string]bool{}, leases: map[string]*subnet.Record{},
		hosts: map[string][]string{}, refused: map[refusal]int{}, count: count,
	}
}

// setter is the compiler's part that hears of endpoints.
type setter interface {
	SetEndpoint(key string, e *compile.Endpoint)
}

// take takes in news of endpoints. Those of this host, own, are known from its records.
func (p *peers) take(n etcdstore.News, own string, to setter) {
	if n.Listed {
		there := make(map[string]bool, len(n.Put))
		for _, kv := range n.Put {
			there[strings.TrimPrefix(kv.Key, etcdstore.EndpointDir)] = true
		}
		for key := range p.all {
			if !there[key] {
				p.forget(key, to)
			}
		}
	}
	for _, kv := range n.Put {
		key := strings.TrimPrefix(kv.Key, etcdstore.EndpointDir)
		_, rest, _ := strings.Cut(key, "/")
		host, _, _ := strings.Cut(rest, "/")
		if host == own {
			p.forget(key, to)
			continue
		}
		now := peer{value: string(kv.Value), lease: kv.LeaseID, host: host}
		if was := p.all[key]; was != nil && was.refused == "" && was.value == now.value && was.lease == now.lease {
			continue
		}
		p.put(key, &now, to)
	}
	for _, kv := range n.Deleted {
		p.forget(strings.TrimPrefix(kv.Key, etcdstore.EndpointDir), to)
	}
}

func (p *peers) put(key string, now *peer, to setter) {
	if was := p.all[key]; was != nil && was.refused != "" {
		p.refused[was.refused]--
	}
	p.all[key] = now
	if p.byHost[now.host] == nil {
		p.byHost[now.host] = map[string]bool{}
	}
	p.byHost[now.host][key] = true
	p.judge(key, now, to)
}

func (p *peers) forget(key string, to setter) {
	was := p.all[key]
	if was == nil {
		return
	}
	if was.refused != "" {
		p.refused[was.refused]--
	} else {
		to.SetEndpoint(key, nil)
	}
	delete(p.all, key)
	if delete(p.byHost[was.host], key); len(p.byHost[was.host]) == 0 {
		delete(p.byHost, was.host)
	}
}

// judge has an endpoint count, or not.
func (p *peers) judge(key string, now *peer, to setter) {
	ep, why := p.examine(key, now)
	if now.refused = why; why != "" {
		p.refused[why]++
		p.count(why)
		to.SetEndpoint(key, nil)
		return
	}
	to.SetEndpoint(key, &compile.Endpoint{Endpoint: ep})
}

// examine reads an endpoint and says why it does not count.
func (p *peers) examine(key string, now *peer) (policy.Endpoint, refusal) {
	host, ep, err := policy.ParsePublished(key, []byte(now.value))
	switch {
	case errors.Is(err, policy.ErrKey):
		return ep, refusedKey
	case err != nil:
		return ep, refusedValue
	}
	if len(p.hosts[host]) == 0 {
		return policy.Endpoint{}, refusedHost
	}
	on := false
	var subnets []netip.Prefix
	for _, k := range p.hosts[host] {
		l := p.leases[k]
		on = on || l.LeaseID == now.lease || l.LeaseID == 0 // whose subnet is reserved has a lease for them alone
		subnets = append(subnets, l.Subnets()...)
	}
	for _, ip := range ep.IPs {
		if !within(ip, subnets) {
			return policy.Endpoint{}, refusedAddress
		}
	}
	if !on {
		return policy.Endpoint{}, refusedLease
	}
	return ep, ""
}

func within(ip netip.Addr, subnets []netip.Prefix) bool {
	for _, s := range subnets {
		if s.Masked().Contains(ip) {
			return true
		}
	}
	return false
}

// lease takes in a host's lease, or that it is gone. An endpoint that counts goes on to do so if it is in the subnet: when the
// etcd lease is another, and its old one ends, etcd deletes the key.
func (p *peers) lease(key string, now *subnet.Record, to setter) {
	was := p.leases[key]
	if delete(p.leases, key); was != nil {
		p.hosts[was.HostID] = without(p.hosts[was.HostID], key)
		if len(p.hosts[was.HostID]) == 0 {
			delete(p.hosts, was.HostID)
		}
	}
	if now != nil && now.HostID != "" { // flannel's hosts have no endpoints
		p.leases[key] = now
		p.hosts[now.HostID] = append(p.hosts[now.HostID], key)
	}
	for _, r := range []*subnet.Record{was, now} {
		if r == nil {
			continue
		}
		for k := range p.byHost[r.HostID] {
			have := p.all[k]
			_, why := p.examine(k, have)
			switch {
			case have.refused == why, have.refused == "" && why == refusedLease:
			default:
				if have.refused != "" {
					p.refused[have.refused]--
				}
				p.judge(k, have, to)
			}
		}
	}
}

func without(keys []string, key string) (rest []string) {
	for _, k := range keys {
		if k != key {
			rest = append(rest, k)
		}
	}
	return rest
}

// number is how many count, and how many do not.
func (p *peers) number() (known, refused int) {
	for _, n := range p.refused {
		refused += n
	}
	return len(p.all) - refused, refused
}
