package compile

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Judge says whether a new connection from src may go to a port of dst, as far as the groups of local addresses have it: of a
// side that is not local it says nothing. A port of 0 is none, as with ICMP. What a host sends itself is not for it to judge.
func (c *Compiler) Judge(src, dst netip.Addr, proto uint8, port uint16) bool {
	_, _, denied := c.judge(addrOf(src), addrOf(dst), proto, port)
	return !denied
}

// judge finds the group that denies a connection, and its direction.
func (c *Compiler) judge(src, dst addr, proto uint8, port uint16) (g *group, d direction, denied bool) {
	if src == dst {
		return nil, out, false
	}
	if g := c.local[src][out]; g != nil && !c.allows(g, dst, proto, port) {
		return g, out, true
	}
	if g := c.local[dst][in]; g != nil && !c.allows(g, src, proto, port) {
		return g, in, true
	}
	return nil, out, false
}

// allows says whether a group lets pass what comes from or goes to an address.
func (c *Compiler) allows(g *group, peer addr, proto uint8, port uint16) bool {
	for _, p := range g.anyone {
		if p.covers(proto, port) {
			return true
		}
	}
	for p, set := range g.blocks {
		if p.covers(proto, port) && set.Contains(peer.ip()) {
			return true
		}
	}
	var room [8]ports
	for _, p := range g.reached(room[:0], c.was(peer), peer) {
		if p.covers(proto, port) {
			return true
		}
	}
	return false
}

// Why says, in a line, how Judge has come to what it says: with both endpoints' names, and the policies that isolate them.
func (c *Compiler) Why(src, dst netip.Addr, proto uint8, port uint16) string {
	flow := fmt.Sprintf("%s to %s, %s", c.named(src), c.named(dst), service(proto, port))
	g, d, denied := c.judge(addrOf(src), addrOf(dst), proto, port)
	if !denied {
		return flow + ": allowed"
	}
	what, who := "egress", src
	if d == in {
		what, who = "ingress", dst
	}
	return fmt.Sprintf("%s: %s of %s is isolated by %s, which %s not allow it",
		flow, what, c.named(who), list(g.policies), map[bool]string{true: "do", false: "does"}[len(g.policies) > 1])
}

// Owner is the endpoint that has an address, by its namespace and name; both empty: none is known.
func (c *Compiler) Owner(ip netip.Addr) (namespace, name string) {
	if o := c.owner(addrOf(ip)); o != nil {
		namespace, name = o.class.ns.name, o.name()
	}
	return namespace, name
}

func (c *Compiler) named(ip netip.Addr) string {
	namespace, name := c.Owner(ip)
	if namespace == "" {
		return ip.Unmap().String() + " (no known endpoint)"
	}
	return fmt.Sprintf("%s/%s (%s)", namespace, name, ip.Unmap())
}

func service(proto uint8, port uint16) string {
	name, ok := map[uint8]string{
		unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp",
		unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmpv6",
	}[proto]
	if !ok {
		name = fmt.Sprintf("protocol %d", proto)
	}
	if port == 0 {
		return name
	}
	return fmt.Sprintf("%d/%s", port, name)
}

// listed is how many policies a line names at most.
const listed = 5

func list(policies []string) string {
	switch n := len(policies); {
	case n == 0:
		return "the default"
	case n > listed:
		return fmt.Sprintf("%s and %d more", strings.Join(policies[:listed], ", "), n-listed)
	}
	return strings.Join(policies, ", ")
}
