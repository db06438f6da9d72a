package compile_test

import (
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
)

// world is what a compiler was told, and naive reads the API's text to say what that means: each question from the beginning,
// by going through everything. It shares no code with what it judges.
type world struct {
	policies   map[string]policy.Policy
	namespaces map[string]policy.Namespace
	def        policy.Default
	endpoints  map[string]compile.Endpoint
	claims     map[netip.Addr][]string // keys, the oldest claim first
}

func newWorld() *world {
	return &world{
		policies: map[string]policy.Policy{}, namespaces: map[string]policy.Namespace{},
		endpoints: map[string]compile.Endpoint{}, claims: map[netip.Addr][]string{},
	}
}

func (w *world) setEndpoint(key string, e *compile.Endpoint) {
	var ips []netip.Addr
	if e != nil {
		ips = e.IPs
	}
	for ip, keys := range w.claims {
		if slices.Contains(keys, key) && !slices.Contains(ips, ip) {
			w.claims[ip] = slices.DeleteFunc(keys, func(k string) bool { return k == key })
		}
	}
	if e == nil {
		delete(w.endpoints, key)
		return
	}
	w.endpoints[key] = *e
	for _, ip := range ips {
		if !slices.Contains(w.claims[ip], key) {
			w.claims[ip] = append(w.claims[ip], key)
		}
	}
}

// at is the endpoint that counts for an address.
func (w *world) at(ip netip.Addr) (e compile.Endpoint, ok bool) {
	for _, key := range w.claims[ip] {
		if next := w.endpoints[key]; !ok || next.Local || !e.Local {
			e, ok = next, true
		}
	}
	return e, ok
}

func (w *world) namespaceLabels(name string) map[string]string {
	labels := map[string]string{}
	for k, v := range w.namespaces[name].Labels {
		labels[k] = v
	}
	labels["kubernetes.io/metadata.name"] = name
	return labels
}

func selected(s policy.Selector, labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		have, ok := labels[r.Key]
		among := false
		for _, v := range r.Values {
			among = among || ok && v == have
		}
		switch r.Operator {
		case "In":
			if !among {
				return false
			}
		case "NotIn":
			if among {
				return false
			}
		case "Exists":
			if !ok {
				return false
			}
		case "DoesNotExist":
			if ok {
				return false
			}
		}
	}
	return true
}

// isolating are the policies that isolate an endpoint; denied: the default does.
func (w *world) isolating(e compile.Endpoint, t policy.Type) (list []policy.Policy, denied bool) {
	for _, p := range w.policies {
		if p.Namespace == e.Namespace && slices.Contains(p.Spec.PolicyTypes, t) && selected(p.Spec.PodSelector, e.Labels) {
			list = append(list, p)
		}
	}
	def := w.namespaces[e.Namespace].Default
	if def == "" {
		def = w.def
	}
	return list, def == "deny"
}

func (w *world) peerMeans(p policy.Policy, peer policy.Peer, ip netip.Addr) bool {
	if peer.IPBlock != nil {
		if !netip.MustParsePrefix(peer.IPBlock.CIDR).Contains(ip) {
			return false
		}
		for _, except := range peer.IPBlock.Except {
			if netip.MustParsePrefix(except).Contains(ip) {
				return false
			}
		}
		return true
	}
	e, ok := w.at(ip)
	return ok && w.peerSelects(p, peer, e)
}

func (w *world) peerSelects(p policy.Policy, peer policy.Peer, e compile.Endpoint) bool {
	if peer.NamespaceSelector == nil {
		if e.Namespace != p.Namespace {
			return false
		}
	} else if !selected(*peer.NamespaceSelector, w.namespaceLabels(e.Namespace)) {
		return false
	}
	return peer.PodSelector == nil || selected(*peer.PodSelector, e.Labels)
}

var numbers = map[policy.Protocol]uint8{"TCP": 6, "UDP": 17, "SCTP": 132}

// portMeans says whether a port of a rule is that of a flow to ip.
func (w *world) portMeans(want policy.Port, proto uint8, port uint16, ip netip.Addr) bool {
	if numbers[want.Protocol] != proto {
		return false
	}
	switch {
	case want.Name != "":
		e, _ := w.at(ip)
		for _, named := range e.Ports {
			if named.Name == want.Name && named.Protocol == want.Protocol && named.Port == port {
				return true
			}
		}
		return false
	case want.Port == 0:
		return true
	case want.EndPort != 0:
		return port >= want.Port && port <= want.EndPort
	}
	return port == want.Port
}

// allowed says whether a new connection passes the local sides of it.
func (w *world) allowed(src, dst netip.Addr, proto uint8, port uint16) bool {
	if src == dst {
		return true
	}
	any := func(ports []policy.Port, peers []policy.Peer, p policy.Policy, ip netip.Addr) bool {
		return (len(peers) == 0 || slices.ContainsFunc(peers, func(peer policy.Peer) bool { return w.peerMeans(p, peer, ip) })) &&
			(len(ports) == 0 || slices.ContainsFunc(ports, func(q policy.Port) bool { return w.portMeans(q, proto, port, dst) }))
	}
	if e, ok := w.at(src); ok && e.Local {
		policies, denied := w.isolating(e, "Egress")
		pass := len(policies) == 0 && !denied
		for _, p := range policies {
			for _, r := range p.Spec.Egress {
				pass = pass || any(r.Ports, r.To, p, dst)
			}
		}
		if !pass {
			return false
		}
	}
	if e, ok := w.at(dst); ok && e.Local {
		policies, denied := w.isolating(e, "Ingress")
		pass := len(policies) == 0 && !denied
		for _, p := range policies {
			for _, r := range p.Spec.Ingress {
				pass = pass || any(r.Ports, r.From, p, src)
			}
		}
		return pass
	}
	return true
}

// needs says whether a policy's peers could mean an endpoint.
func (w *world) needs(e policy.Endpoint) bool {
	named := func(ports []policy.Port, in func(netip.Addr) bool) bool {
		for _, want := range ports {
			for _, have := range e.Ports {
				if want.Name != "" && want.Name == have.Name && want.Protocol == have.Protocol && slices.ContainsFunc(e.IPs, in) {
					return true
				}
			}
		}
		return false
	}
	for _, p := range w.policies {
		for _, t := range p.Spec.PolicyTypes {
			if t == "Ingress" {
				for _, r := range p.Spec.Ingress {
					for _, peer := range r.From {
						if peer.IPBlock == nil && w.peerSelects(p, peer, compile.Endpoint{Endpoint: e}) {
							return true
						}
					}
				}
				continue
			}
			for _, r := range p.Spec.Egress {
				if len(r.To) == 0 && named(r.Ports, func(netip.Addr) bool { return true }) {
					return true
				}
				for _, peer := range r.To {
					if peer.IPBlock == nil && w.peerSelects(p, peer, compile.Endpoint{Endpoint: e}) ||
						peer.IPBlock != nil && named(r.Ports, func(ip netip.Addr) bool { return w.peerMeans(p, peer, ip) }) {
						return true
					}
				}
			}
		}
	}
	return false
}
