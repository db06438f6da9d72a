package compile

import (
	"slices"
	"strings"

	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/policy"
)

// compiled is a policy: what it isolates, and what that may do nevertheless.
type compiled struct {
	key      string // namespace/name
	target   *term
	isolates [2]bool
	allows   [2][]allowance
}

// allowance is what one peer of a rule and one port of it allow.
type allowance struct {
	term  *term  // nil: everybody, or all of block
	block *block // with a term: only those of it that are in the block
	ports ports
	name  string // The ports are those of this name, ports.proto says of which protocol: the term's, or of ingress the group's own.
}

// ports are all of a protocol or a range of its ports; the zero value is everything.
type ports struct {
	proto       uint8
	first, last uint16
}

func (p ports) covers(proto uint8, port uint16) bool {
	return p.proto == 0 || p.proto == proto && (p.first == 0 || p.first <= port && port <= p.last)
}

// block is an ipBlock.
type block struct {
	key  string
	set  *netipx.IPSet
	refs int // of policies
}

// protocol is the number of a protocol; 0: it is none that has ports.
func protocol(p policy.Protocol) uint8 {
	switch p {
	case policy.TCP, "":
		return unix.IPPROTO_TCP
	case policy.UDP:
		return unix.IPPROTO_UDP
	case policy.SCTP:
		return unix.IPPROTO_SCTP
	}
	return 0
}

// compile makes of a policy what can be said without knowing endpoints. Rules of a direction that it does not isolate are void.
func (c *Compiler) compile(key string, p *policy.Policy) *compiled {
	r := &compiled{key: key, target: c.peer(p.Namespace, nil, &p.Spec.PodSelector)}
	for _, t := range p.Spec.PolicyTypes {
		switch t {
		case policy.Ingress:
			r.isolates[in] = true
			for _, rule := range p.Spec.Ingress {
				c.rule(r, p, in, rule.From, rule.Ports)
			}
		case policy.Egress:
			r.isolates[out] = true
			for _, rule := range p.Spec.Egress {
				c.rule(r, p, out, rule.To, rule.Ports)
			}
		}
	}
	c.hold(r)
	return r
}

// rule adds each peer of a rule with each of its ports.
func (c *Compiler) rule(r *compiled, p *policy.Policy, d direction, peers []policy.Peer, portSpecs []policy.Port) {
	var from []allowance
	for _, peer := range peers {
		switch {
		case peer.IPBlock != nil:
			if b := c.block(peer.IPBlock); b != nil {
				from = append(from, allowance{block: b})
			}
		case peer.NamespaceSelector != nil || peer.PodSelector != nil:
			from = append(from, allowance{term: c.peer(p.Namespace, peer.NamespaceSelector, peer.PodSelector)})
		}
	}
	if len(peers) == 0 {
		from = []allowance{{}}
	}
	for _, a := range from {
		if len(portSpecs) == 0 {
			r.allows[d] = append(r.allows[d], a)
		}
		for _, port := range portSpecs {
			next := a
			next.ports.proto, next.name = protocol(port.Protocol), port.Name
			switch {
			case next.ports.proto == 0:
				continue
			case port.Name != "" && d == out && a.term == nil:
				next.term = c.intern(anyone, term{spaces: selector{}})
			case port.Port != 0:
				next.ports.first, next.ports.last = port.Port, max(port.Port, port.EndPort)
			}
			r.allows[d] = append(r.allows[d], next)
		}
	}
}

// hold counts what a policy refers to, letGo takes that back.
func (c *Compiler) hold(r *compiled) {
	r.target.refs++
	r.target.targets = append(r.target.targets, r)
	for _, a := range slices.Concat(r.allows[in], r.allows[out]) {
		if a.block != nil {
			a.block.refs++
		}
		if a.term == nil {
			continue
		}
		a.term.refs++
		if a.term.key == anyone {
			if a.term.names == nil {
				a.term.names = map[allowance]int{}
			}
			a.term.names[a]++
		} else {
			a.term.peers++
		}
	}
}

func (c *Compiler) letGo(r *compiled) {
	r.target.targets = slices.DeleteFunc(r.target.targets, func(o *compiled) bool { return o == r })
	c.unref(r.target)
	for _, a := range slices.Concat(r.allows[in], r.allows[out]) {
		if a.block != nil {
			if a.block.refs--; a.block.refs == 0 {
				delete(c.blocks, a.block.key)
			}
		}
		if a.term == nil {
			continue
		}
		if a.term.key != anyone {
			a.term.peers--
		} else if a.term.names[a]--; a.term.names[a] == 0 {
			delete(a.term.names, a)
		}
		c.unref(a.term)
	}
}

func (c *Compiler) unref(t *term) {
	if t.refs--; t.refs == 0 {
		c.index.remove(t)
		delete(c.terms, t.key)
	}
}

// block returns a block of addresses; nil if it cannot be read: it allows nothing then.
func (c *Compiler) block(b *policy.IPBlock) *block {
	key := strings.Join(append([]string{b.CIDR}, b.Except...), " ")
	if old := c.blocks[key]; old != nil {
		return old
	}
	var builder netipx.IPSetBuilder
	cidr, err := policy.ParseCIDR(b.CIDR)
	if err != nil {
		return nil
	}
	builder.AddPrefix(cidr)
	for _, s := range b.Except {
		except, err := policy.ParseCIDR(s)
		if err != nil {
			return nil
		}
		builder.RemovePrefix(except)
	}
	set, err := builder.IPSet()
	if err != nil {
		return nil
	}
	c.blocks[key] = &block{key: key, set: set}
	return c.blocks[key]
}
