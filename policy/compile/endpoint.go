package compile

import (
	"net/netip"
	"slices"
)

// addr is an address as maps have it: without a pointer, IPv4 as ::ffff:a.b.c.d.
type addr [16]byte

func addrOf(a netip.Addr) addr { return a.As16() }

func (a addr) ip() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// endpoint is one that the caller has put in.
type endpoint struct {
	class *class
	name  string
	ips   []addr
	at    int32 // in its class's members
	local bool
}

// SetEndpoint puts an endpoint in, or another in its place; nil takes it out. Of endpoints with the same address the one counts
// that is local, and of these the one that came to it last; when it goes, the other counts again. e is not kept.
func (c *Compiler) SetEndpoint(key string, e *Endpoint) {
	old := c.endpoints[key]
	if e == nil {
		if old != nil {
			c.replace(old, endpoint{})
			delete(c.endpoints, key)
		}
		return
	}
	next := endpoint{class: c.classOf(e), name: e.Name, ips: make([]addr, 0, len(e.IPs)), local: e.Local}
	for _, ip := range e.IPs {
		if a := addrOf(ip); !slices.Contains(next.ips, a) {
			next.ips = append(next.ips, a)
		}
	}
	if old == nil {
		old = new(endpoint)
		c.endpoints[key] = old
	} else if old.class == next.class && old.local == next.local && slices.Equal(old.ips, next.ips) {
		old.name = next.name
		return
	}
	c.replace(old, next)
}

// replace makes of e what next is: of no class and without addresses if it goes.
func (c *Compiler) replace(e *endpoint, next endpoint) {
	for _, ips := range [][]addr{e.ips, next.ips} {
		for _, a := range ips {
			c.touch(a)
		}
	}
	if e.class != nil {
		c.leave(e)
	}
	had := e.ips
	*e = next
	if e.class != nil {
		c.join(e)
	}
	for _, a := range had {
		if !slices.Contains(e.ips, a) {
			c.release(a, e)
		}
	}
	for _, a := range e.ips {
		if !slices.Contains(had, a) {
			c.claim(a, e)
		} else if claims := c.claims[a]; claims != nil {
			c.owner[a] = counting(claims) // It may have become local.
		}
	}
}

// touch remembers of which class an address was at the last Flush.
func (c *Compiler) touch(a addr) {
	if _, ok := c.touched[a]; ok {
		return
	}
	if o := c.owner[a]; o != nil {
		c.touched[a] = o.class
	} else {
		c.touched[a] = nil
	}
}

// was is the class of an address as of the last Flush.
func (c *Compiler) was(a addr) *class {
	if class, ok := c.touched[a]; ok {
		return class
	}
	if o := c.owner[a]; o != nil {
		return o.class
	}
	return nil
}

func (c *Compiler) claim(a addr, e *endpoint) {
	o := c.owner[a]
	if o == nil {
		c.owner[a] = e
		return
	}
	claims := c.claims[a]
	if claims == nil {
		claims = []*endpoint{o}
	}
	claims = append(claims, e)
	c.claims[a], c.owner[a] = claims, counting(claims)
}

func (c *Compiler) release(a addr, e *endpoint) {
	claims := c.claims[a]
	if claims == nil {
		delete(c.owner, a)
		return
	}
	claims = slices.DeleteFunc(claims, func(o *endpoint) bool { return o == e })
	c.owner[a] = counting(claims)
	if len(claims) > 1 {
		c.claims[a] = claims
	} else {
		delete(c.claims, a)
	}
}

// counting is the one that counts of those that have an address: what a peer says of it cannot free a local one.
func counting(claims []*endpoint) *endpoint {
	for _, e := range slices.Backward(claims) {
		if e.local {
			return e
		}
	}
	return claims[len(claims)-1]
}

// owned calls f with each address for which an endpoint of the class counts.
func (c *Compiler) owned(cl *class, f func(e *endpoint, a addr)) {
	for _, e := range cl.members {
		for _, a := range e.ips {
			if c.owner[a] == e {
				f(e, a)
			}
		}
	}
}
