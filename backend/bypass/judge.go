package bypass

import (
	"fmt"
	"slices"
	"strings"
)

// verdict is what a rule does to a packet that it matches.
type verdict int

const (
	accept verdict = iota
	back           // to the chain from which it came
	jump
	branch // nftables' goto: from there, back to the chain before
	nothing
	acts // drops, or changes something, or remembers
)

// rule is one of a chain.
type rule struct {
	text    string
	tests   []test
	verdict verdict
	target  string // of a jump
}

// base is a chain that packets come to by themselves.
type base struct {
	chain   string
	hook    string
	drops   bool     // what no rule accepts
	devices []string // of a hook of links; nil: it is none of those
}

// table is one of a firewall's, without what is for address translation.
type table struct {
	title  string // "nft inet filter", "iptables filter"
	family string // ip, ip6, inet, bridge, netdev
	bases  []base
	chains map[string][]rule
}

// finding is something that would be passed by.
type finding struct {
	why   string
	links []string // names or patterns of containers' links that it is about alone; nil: it is about all
}

// maxSteps bounds how many rules one chain's judging looks at. Chains that many rules lead to are met many times.
const maxSteps = 200_000

// judge tells what in the table judges packets of the flows.
func (t *table) judge(o Ours, isContainer func(pattern string) bool) (found []finding) {
	for _, p := range o.flows() {
		for _, b := range t.bases {
			q, links, seen := t.sees(b, p, o, isContainer)
			if !seen {
				continue
			}
			w := walk{table: t, isContainer: isContainer}
			accepted, why := w.chain(b.chain, q)
			if why == "" && !accepted && b.drops {
				why = fmt.Sprintf("%s %s: policy drop", t.title, b.chain)
			}
			if why != "" {
				found = append(found, finding{fmt.Sprintf("%s judges packets %s", why, p.what), links})
			}
		}
	}
	return found
}

// sees tells whether packets come to a chain, and which of them; and the containers' links if by those only. Where IP is
// forwarded, a bridge's packets come by the bridge.
func (t *table) sees(b base, p packets, o Ours, isContainer func(string) bool) (_ packets, links []string, seen bool) {
	switch {
	case t.family == "ip" && p.v6, t.family == "ip6" && !p.v6:
		return p, nil, false
	case t.family == "bridge":
		return p, nil, slices.Contains(p.bridged, b.hook)
	case !slices.Contains(p.hooks, b.hook):
		return p, nil, false
	case b.devices == nil && !o.routed:
		return p.without(packets{in: []string{container}, out: []string{container}, states: p.states}), nil, true
	case b.devices == nil:
		return p, nil, true
	}
	devices := b.devices
	if b.hook == "egress" { // what leaves by the underlay passes there in any case
		devices = slices.DeleteFunc(slices.Clone(devices), func(d string) bool { return like(o.Underlay, d) })
	}
	p, f := byLink(b.hook == "ingress", devices, false)(p, isContainer)
	at := p.in
	if b.hook == "egress" {
		at = p.out
	}
	if f != never && slices.Equal(at, []string{container}) {
		links = slices.DeleteFunc(slices.Clone(devices), func(d string) bool { return !isContainer(d) })
	}
	return p, links, f != never
}

// walk goes through one table's chains.
type walk struct {
	table       *table
	isContainer func(pattern string) bool
	steps       int
}

// chain tells whether the chain accepts all of the packets, and the rule that does something to any of them.
func (w *walk) chain(name string, p packets) (accepts bool, why string) {
	accepts = true
	for _, r := range w.table.chains[name] {
		if w.steps++; w.steps > maxSteps {
			return false, w.table.title + ", of whose rules there are too many to look through,"
		}
		q, f := meet(r.tests, p, w.isContainer)
		if f == never {
			continue
		}
		done := r.verdict == accept // with what it matched
		switch r.verdict {
		case acts:
			return false, fmt.Sprintf("%s %s: '%s'", w.table.title, name, shortened(r.text))
		case nothing:
			continue
		case jump, branch:
			if done, why = w.chain(r.target, q); why != "" {
				return false, why
			}
		}
		if !done && r.verdict == jump {
			continue
		}
		switch f {
		case always:
			return accepts && done, ""
		case part:
			accepts = accepts && done
			p = p.without(q)
		}
	}
	return false, ""
}

// meet tells what of the packets meets all tests.
func meet(tests []test, p packets, isContainer func(pattern string) bool) (packets, fit) {
	all := always
	for _, t := range tests {
		var f fit
		if p, f = t(p, isContainer); f == never {
			return p, never
		}
		if all == part && f == part {
			f = maybe // what is left is not told in one
		}
		all = min(all, f)
	}
	return p, all
}

// shortened is a rule for one line.
func shortened(text string) string {
	const most = 160
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
