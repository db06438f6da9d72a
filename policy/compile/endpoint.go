package compile

import (
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/policy"
)

// addr is an address as 16 bytes, IPv4 as ::ffff:a.b.c.d.
type addr [16]byte

func addrOf(a netip.Addr) addr { return a.As16() }

func (a addr) ip() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// endpoint is one that the caller has put in. There are many: it is small.
type endpoint struct {
	class *class
	text  string // its addresses, 16 bytes each, and its name
	at    int32  // in its class's members
	ips   uint8  // how many
	local bool
	from  Source
}

// maxIPs is how many addresses of an endpoint count.
const maxIPs = 255

func newEndpoint(cl *class, e *Endpoint) endpoint {
	n := endpoint{class: cl, local: e.Local, from: e.From}
	text := make([]byte, 0, 128)
	for i, ip := range e.IPs {
		if !slices.Contains(e.IPs[:i], ip) && n.ips < maxIPs {
			a := addrOf(ip)
			text = append(text, a[:]...)
			n.ips++
		}
	}
	n.text = string(append(text, e.Name...))
	return n
}

func (e *endpoint) name() string { return e.text[int(e.ips)*len(addr{}):] }

func (e *endpoint) ip(i int) (a addr) {
	copy(a[:], e.text[i*len(a):])
	return a
}

func (e *endpoint) has(a addr) bool {
	for i := range int(e.ips) {
		if e.ip(i) == a {
			return true
		}
	}
	return false
}

// SetEndpoint puts an endpoint in, or another in its place; nil takes it out. Of endpoints with the same address the one counts
// that is local, and of these the one that came to it last; when it goes, the other counts again. Nothing of key and e is kept.
func (c *Compiler) SetEndpoint(key string, e *Endpoint) {
	old := c.endpoints[key]
	if e == nil {
		if old != nil {
			c.replace(old, endpoint{})
			delete(c.endpoints, key)
		}
		return
	}
	next := newEndpoint(c.classOf(e), e)
	if old == nil {
		old = new(endpoint)
		c.endpoints[strings.Clone(key)] = old // it may be a part of something long
	} else {
		next.at, old.from = old.at, next.from
		if *old == next {
			return
		}
	}
	c.replace(old, next)
}

// From is the source of the endpoint with a key; the zero Source: there is none, or it has none.
func (c *Compiler) From(key string) (s Source) {
	if e := c.endpoints[key]; e != nil {
		s = e.from
	}
	return s
}

// Sourced are the endpoints that have a source, by key. Those that are yielded may be taken out meanwhile.
func (c *Compiler) Sourced() iter.Seq2[string, Source] {
	return func(yield func(string, Source) bool) {
		for key, e := range c.endpoints {
			if e.from != (Source{}) && !yield(key, e.from) {
				return
			}
		}
	}
}

// Endpoint returns what has been put in with a key, for which something has: addresses and ports once each, the ports sorted.
func (c *Compiler) Endpoint(key string) (ep policy.Endpoint) {
	e := c.endpoints[key]
	ep.Namespace, ep.Name = e.class.ns.name, e.name()
	for i := range int(e.ips) {
		ep.IPs = append(ep.IPs, e.ip(i).ip())
	}
	var room [16]label
	for _, l := range decode(room[:0], e.class.labels) {
		if ep.Labels == nil {
			ep.Labels = map[string]string{}
		}
		ep.Labels[l.key] = l.value
	}
	for _, p := range e.class.ports {
		for _, proto := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} {
			if protocol(proto) == p.proto {
				ep.Ports = append(ep.Ports, policy.NamedPort{Name: p.name, Port: p.port, Protocol: proto})
			}
		}
	}
	return ep
}

// replace makes of e what next is: of no class and without addresses if it goes.
func (c *Compiler) replace(e *endpoint, next endpoint) {
	was := *e
	for _, of := range []*endpoint{&was, &next} {
		for i := range int(of.ips) {
			c.touch(of.ip(i))
		}
	}
	for i := range int(was.ips) {
		if a := was.ip(i); !next.has(a) {
			c.release(a, e)
		}
	}
	for i := range int(next.ips) {
		if a := next.ip(i); !was.has(a) {
			c.claim(a, e)
		}
	}
	if was.class != nil {
		c.leave(e)
	}
	*e = next
	if e.class != nil {
		c.join(e)
	}
}

// touch remembers of which class an address was at the last Flush.
func (c *Compiler) touch(a addr) {
	if _, ok := c.touched[a]; ok {
		return
	}
	c.touched[a] = nil
	if o := c.owner(a); o != nil {
		c.touched[a] = o.class
	}
}

// was is the class of an address as of the last Flush.
func (c *Compiler) was(a addr) *class {
	if class, ok := c.touched[a]; ok {
		return class
	}
	if o := c.owner(a); o != nil {
		return o.class
	}
	return nil
}

// owner is the one that counts of those that have an address, or nil: what a peer says of it cannot free a local one.
func (c *Compiler) owner(a addr) *endpoint {
	claims := c.claims[a]
	if claims == nil {
		return c.addrs.find(a)
	}
	for _, e := range slices.Backward(claims) {
		if e.local {
			return e
		}
	}
	return claims[len(claims)-1]
}

// claim lets an endpoint have an address that it does not have yet.
func (c *Compiler) claim(a addr, e *endpoint) {
	claims := c.claims[a]
	if claims == nil {
		if o := c.addrs.find(a); o != nil {
			claims = []*endpoint{o}
		}
	}
	if claims != nil {
		c.claims[a] = append(claims, e)
	}
	c.addrs.add(a, e)
}

func (c *Compiler) release(a addr, e *endpoint) {
	c.addrs.remove(a, e)
	claims := slices.DeleteFunc(c.claims[a], func(o *endpoint) bool { return o == e })
	if len(claims) > 1 {
		c.claims[a] = claims
	} else {
		delete(c.claims, a)
	}
}

// owned calls f with each address for which an endpoint of the class counts.
func (c *Compiler) owned(cl *class, f func(e *endpoint, a addr)) {
	for _, e := range cl.members {
		for i := range int(e.ips) {
			if a := e.ip(i); c.owner(a) == e {
				f(e, a)
			}
		}
	}
}
