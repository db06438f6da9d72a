package bypass

import (
	"net/netip"
	"slices"
)

// fit is whether packets meet what a rule matches.
type fit int

const (
	never fit = iota
	maybe     // some of them, or nobody knows
	part      // of them those that the test returned, and of those all
	always
)

func (f fit) not() fit {
	switch f {
	case never:
		return always
	case always:
		return never
	}
	return f
}

// state is what the tracking of connections says of packets; a set of them, in bits. What it calls invalid is not among them:
// the slow way would drop some of what is fast, of which tracking saw only a part, and that harms nobody.
type state byte

const (
	fresh state = 1 << iota // iptables' NEW
	established
	related
	untracked
	anyState = fresh | established | related | untracked
)

var states = map[string]state{"new": fresh, "established": established, "related": related, "untracked": untracked}

// packets are all those of a kind that the fast path takes past what judges.
type packets struct {
	what    string // for the reason
	hooks   []string
	bridged []string // the hooks of bridges that show them
	// The links that they come and leave by; what is made here comes by none, "".
	in, out []string
	from    []netip.Prefix // nil: any host's address
	to      []netip.Prefix
	v6      bool
	ports   []uint16 // that UDP goes to; nil: any port, of UDP and TCP
	states  state
}

// container stands, among links, for that of any container.
const container = "a container's"

// flows are all that the fast path may take.
func (o Ours) flows() (all []packets) {
	inside := append(append([]string{container}, o.Bridges...), o.Overlays...)
	if o.Direct {
		inside = append(inside, o.Underlay)
	}
	for _, n := range o.Networks {
		all = append(all, packets{
			what: "between containers", hooks: []string{"prerouting", "forward", "postrouting", "ingress", "egress"},
			bridged: []string{"prerouting", "input", "output", "postrouting"},
			in:      inside, out: inside, from: []netip.Prefix{n}, to: []netip.Prefix{n}, v6: n.Addr().Is6(), states: anyState,
		})
	}
	for _, t := range o.Tunnels {
		own, port := []netip.Prefix{netip.PrefixFrom(t.Addr(), t.Addr().BitLen())}, []uint16{t.Port()}
		all = append(all, packets{
			what: "that come by the tunnel", hooks: []string{"prerouting", "input", "ingress"},
			in: []string{o.Underlay}, out: []string{""}, to: own, v6: t.Addr().Is6(), ports: port, states: anyState,
		}, packets{
			what: "that leave by the tunnel", hooks: []string{"output", "postrouting"},
			in: []string{""}, out: []string{o.Underlay}, from: own, v6: t.Addr().Is6(), ports: port, states: anyState,
		})
	}
	return all
}

// without is what of the packets is left without a part of them.
func (p packets) without(q packets) packets {
	less := func(all, some []string) []string {
		if slices.Equal(all, some) { // it is not in links that they differ
			return all
		}
		return slices.DeleteFunc(slices.Clone(all), func(l string) bool { return slices.Contains(some, l) })
	}
	p.in, p.out = less(p.in, q.in), less(p.out, q.out)
	if p.states != q.states {
		p.states &^= q.states
	}
	return p
}
