package bypass

import (
	"net/netip"
	"slices"
	"strings"
)

// test is one of a rule's matches: what of the packets meets it.
type test func(p packets, isContainer func(pattern string) bool) (packets, fit)

// byLink matches the links that packets come (else leave) by. A name that ends with * is that of all that begin so.
func byLink(come bool, names []string, not bool) test {
	return func(p packets, isContainer func(string) bool) (packets, fit) {
		links := &p.out
		if come {
			links = &p.in
		}
		exact, met := true, []string(nil)
		for _, link := range *links {
			hit := slices.ContainsFunc(names, func(pattern string) bool { return link != container && like(link, pattern) })
			if link == container && slices.ContainsFunc(names, isContainer) {
				hit, exact = !not, false
			}
			if hit != not {
				met = append(met, link)
			}
		}
		all := exact && len(met) == len(*links)
		*links = met
		switch {
		case len(met) == 0:
			return p, never
		case all:
			return p, always
		case exact:
			return p, part
		}
		return p, maybe
	}
}

// byState matches what tracking says, by names of whichever case. What is translated is never fast.
func byState(names []string, not bool) test {
	var all state
	for _, name := range names {
		name = strings.ToLower(name)
		all |= states[name]
		if states[name] == 0 && name != "invalid" && name != "dnat" && name != "snat" {
			return some
		}
	}
	if not {
		all = anyState &^ all
	}
	return func(p packets, _ func(string) bool) (packets, fit) {
		before := p.states
		switch p.states &= all; p.states {
		case 0:
			return p, never
		case before:
			return p, always
		}
		return p, part
	}
}

// byKind matches by the kind of an address: LOCAL, say.
func byKind(source bool, kind string, not bool) test {
	return func(p packets, _ func(string) bool) (packets, fit) {
		f := maybe
		switch kind {
		case "LOCAL": // only ends of tunnels are
			f = never
			if p.ports != nil && (source && p.from != nil || !source && p.to != nil) {
				f = always
			}
		case "MULTICAST", "BROADCAST", "ANYCAST":
			f = never
		}
		if not {
			f = f.not()
		}
		return p, f
	}
}

func like(link, pattern string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(link, prefix)
	}
	return link == pattern
}

// noHosts are what no host has as its address on an underlay.
var noHosts = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("ff00::/8"),
}

// byAddress matches source (else destination) addresses.
func byAddress(source bool, ranges []netip.Prefix, not bool) test {
	return func(p packets, _ func(string) bool) (packets, fit) {
		have := p.to
		if source {
			have = p.from
		}
		f := within(have, ranges)
		if have == nil {
			f = anyHost(ranges)
		}
		if not {
			f = f.not()
		}
		return p, f
	}
}

func within(have, ranges []netip.Prefix) fit {
	inside, outside := 0, 0
	for _, h := range have {
		switch {
		case slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Bits() <= h.Bits() && r.Overlaps(h) }):
			inside++
		case !slices.ContainsFunc(ranges, h.Overlaps):
			outside++
		}
	}
	switch len(have) {
	case inside:
		return always
	case outside:
		return never
	}
	return maybe
}

func anyHost(ranges []netip.Prefix) fit {
	f := never
	for _, r := range ranges {
		switch {
		case r.Bits() == 0:
			return always
		case within([]netip.Prefix{r}, noHosts) != always:
			f = maybe
		}
	}
	return f
}

// byProtocol matches what is over IP, by names and numbers.
func byProtocol(names []string, not bool) test {
	return func(p packets, _ func(string) bool) (packets, fit) {
		f, tcp := never, slices.Contains(names, "tcp") || slices.Contains(names, "6")
		switch udp := slices.Contains(names, "udp") || slices.Contains(names, "17"); {
		case udp && (tcp || p.ports != nil):
			f = always
		case tcp && p.ports == nil, udp:
			f = maybe
		}
		if not {
			f = f.not()
		}
		return p, f
	}
}

// span is a range of ports.
type span struct{ first, last uint16 }

// byPort matches destination ports.
func byPort(spans []span, not bool) test {
	return func(p packets, _ func(string) bool) (packets, fit) {
		if p.ports == nil {
			return p, maybe
		}
		inside := 0
		for _, port := range p.ports {
			if slices.ContainsFunc(spans, func(s span) bool { return s.first <= port && port <= s.last }) {
				inside++
			}
		}
		f := maybe
		switch inside {
		case 0:
			f = never
		case len(p.ports):
			f = always
		}
		if not {
			f = f.not()
		}
		return p, f
	}
}

// byFamily matches IPv6, or IPv4.
func byFamily(v6 bool) test {
	return func(p packets, _ func(string) bool) (packets, fit) {
		if p.v6 == v6 {
			return p, always
		}
		return p, never
	}
}

// some matches what is not known here, and none what is never fast: fragments, say, or a TCP connection's first packets.
func some(p packets, _ func(string) bool) (packets, fit) { return p, maybe }
func none(p packets, _ func(string) bool) (packets, fit) { return p, never }
