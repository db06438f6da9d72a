package bypass

import (
	"slices"
	"strings"
)

// parseNft reads what nft prints of one table.
func parseNft(text string) *table {
	t := &table{chains: map[string][]rule{}}
	chain := ""
	for line := range strings.Lines(text) {
		depth := len(line) - len(strings.TrimLeft(line, "\t"))
		words := split(line)
		switch {
		case len(words) == 0:
		case depth == 0 && words[0] == "table" && len(words) > 2:
			t.family, t.title = words[1], "nft "+words[1]+" "+words[2]
		case depth == 1:
			chain = ""
			if words[0] == "chain" && len(words) > 1 {
				chain = words[1]
				t.chains[chain] = nil
			}
		case chain == "" || depth != 2: // of a set, a map, a flowtable
		case words[0] == "type":
			if words[1] != "nat" {
				t.bases = append(t.bases, nftBase(chain, words))
			}
		case words[0] == "comment" || words[0] == "policy" || words[0] == "flags": // of the chain
		default:
			for _, alternative := range expand(words) {
				t.chains[chain] = append(t.chains[chain], nftRule(strings.TrimSpace(line), alternative))
			}
		}
	}
	return t
}

// nftBase reads a line such as: type filter hook ingress devices = { "a", "b" } priority 0; policy drop;
func nftBase(chain string, words []string) base {
	b := base{chain: chain}
	for i, w := range words {
		next := strings.TrimRight(words[min(i+1, len(words)-1)], ";")
		switch w {
		case "hook":
			b.hook = next
		case "device":
			b.devices = names(next)
		case "devices":
			b.devices = names(words[min(i+2, len(words)-1)])
		case "policy":
			b.drops = next == "drop"
		}
	}
	if b.devices == nil && (b.hook == "ingress" || b.hook == "egress") {
		b.devices = []string{} // that there are none of yet
	}
	return b
}

// expand makes rules, one a verdict, of one with a map of verdicts that stands in it.
func expand(words []string) (alternatives [][]string) {
	at := slices.Index(words, "vmap")
	if at < 0 || at+1 == len(words) || words[at+1][0] != '{' {
		return [][]string{words}
	}
	for element := range strings.SplitSeq(strings.Trim(words[at+1], "{}"), ",") {
		key, verdict, ok := strings.Cut(element, " : ")
		if !ok {
			return [][]string{words}
		}
		alternatives = append(alternatives, slices.Concat(words[:at], split(key), split(verdict), words[at+2:]))
	}
	return alternatives
}

// changing are words of statements that do something, be it only to remember.
var changing = []string{
	"drop", "reject", "queue", "log", "set", "update", "add", "delete", "quota", "last", "dup", "fwd", "notrack", "tproxy",
	"synproxy", "flow", "masquerade", "snat", "dnat", "redirect", "xt", "vmap", "reset", "tcpmss", "meter",
}

// nftRule reads one rule.
func nftRule(text string, words []string) rule {
	r := nftReader{rule: rule{text: text, verdict: nothing}, words: words}
	for len(r.words) > 0 {
		r.next()
	}
	if r.acts || r.counts && r.rule.verdict == nothing {
		r.rule.verdict = acts
	}
	return r.rule
}

// nftReader reads a rule word by word.
type nftReader struct {
	rule   rule
	words  []string // to come
	counts bool
	acts   bool
}

func (r *nftReader) word() (w string) {
	if len(r.words) > 0 {
		w, r.words = r.words[0], r.words[1:]
	}
	return w
}

func (r *nftReader) test(t test) { r.rule.tests = append(r.rule.tests, t) }

func (r *nftReader) next() {
	switch w := r.word(); w {
	case "meta":
	case "comment":
		r.word()
	case "counter":
		r.counter()
	case "accept", "return", "continue":
		r.rule.verdict = map[string]verdict{"accept": accept, "return": back, "continue": nothing}[w]
	case "jump":
		r.rule.verdict, r.rule.target = jump, r.word()
	case "goto":
		r.rule.verdict, r.rule.target = branch, r.word()
	case "iifname", "iif", "oifname", "oif":
		r.match(func(values []string, not bool) test { return byLink(w[0] == 'i', values, not) })
	case "l4proto":
		r.match(byProtocol)
	case "mark":
		r.mark()
	case "nfproto":
		r.match(func(values []string, not bool) test { return byFamily((values[0] == "ipv6") != not) })
	case "ip", "ip6":
		r.test(byFamily(w == "ip6"))
		r.field()
	case "tcp", "udp", "th":
		if w != "th" {
			r.test(byProtocol([]string{w}, false))
		}
		r.field()
	case "icmp", "icmpv6", "igmp", "arp", "sctp", "dccp", "esp", "ah":
		r.test(none)
	case "ct":
		r.field()
	case "fib":
		r.fib()
	default:
		if slices.Contains(changing, w) {
			r.acts = true
		}
		r.test(some)
	}
}

// field reads what a header, or the tracking of connections, is compared with.
func (r *nftReader) field() {
	switch w := r.word(); w {
	case "saddr", "daddr":
		r.match(func(values []string, not bool) test { return addressTest(w == "saddr", values, not) })
	case "protocol", "nexthdr":
		r.match(byProtocol)
	case "dport":
		r.match(func(values []string, not bool) test { return portTest(values, "-", not) })
	case "state":
		r.match(byState)
	case "status":
		r.match(func(values []string, not bool) test {
			translated := func(v string) bool { return v == "dnat" || v == "snat" }
			return whether(!not && !slices.ContainsFunc(values, func(v string) bool { return !translated(v) }))
		})
	case "flags":
		r.flags()
	case "frag-off":
		r.test(some)
	default:
		r.words = append([]string{w}, r.words...)
		if len(r.words) > 1 { // a field of its own, and no statement
			r.word()
		}
		if slices.Contains(changing, w) {
			r.acts = true
		}
		r.test(some)
	}
}

// fib reads a question about routes: what is asked with, what is asked for, and the answer.
func (r *nftReader) fib() {
	with := r.word()
	for len(r.words) > 1 && r.words[0] == "." {
		with, r.words = "", r.words[2:]
	}
	asked := r.word()
	r.match(func(values []string, not bool) test {
		if asked != "type" || with == "" || len(values) != 1 {
			return some
		}
		return byKind(with == "saddr", strings.ToUpper(values[0]), not)
	})
}

// mark reads a comparison such as: mark & 0x2000 == 0x2000.
func (r *nftReader) mark() {
	if len(r.words) > 3 && (r.words[0] == "&" || r.words[0] == "and") {
		r.words = r.words[2:]
	}
	r.match(func(values []string, not bool) test { return whether(!not && len(values) == 1 && marked(values[0])) })
}

// flags knows those that only a connection's first packets have.
func (r *nftReader) flags() {
	syn := slices.Contains(r.words[:min(1, len(r.words))], "syn")
	if at := slices.Index(r.words, "=="); at > 0 && at+1 < len(r.words) {
		syn = r.words[0] == "&" && slices.Contains(strings.FieldsFunc(r.words[at+1], func(c rune) bool { return c == ',' || c == '|' }), "syn")
	}
	r.test(whether(syn))
}

// match reads the value that what was read is compared with. What it cannot read, it takes for something.
func (r *nftReader) match(is func(values []string, not bool) test) {
	not := false
	switch {
	case len(r.words) == 0:
		r.test(some)
		return
	case r.words[0] == "!=":
		not = true
		r.word()
	case r.words[0] == "==":
		r.word()
	case r.words[0] == ".": // of several together
		r.test(some)
		at := slices.IndexFunc(r.words, func(w string) bool { return w[0] == '{' || w[0] == '@' || w == "vmap" })
		if at < 0 {
			r.acts, r.words = true, nil
			return
		}
		r.words = r.words[at:]
		return
	case slices.Contains([]string{"<", ">", "<=", ">=", "&", "|", "^", "vmap", "map", "set", "and", "or", "xor"}, r.words[0]):
		r.test(some)
		return
	}
	value := r.word()
	if value == "" || value[0] == '@' {
		r.test(some)
		return
	}
	r.test(is(names(value), not))
}

func (r *nftReader) counter() {
	r.counts = true
	for len(r.words) > 1 && slices.Contains([]string{"name", "packets", "bytes"}, r.words[0]) {
		r.words = r.words[2:]
	}
}

// names are those of a value: one, or more in braces or with commas between them; some are in quotes.
func names(value string) (all []string) {
	for name := range strings.SplitSeq(strings.Trim(value, "{} "), ",") {
		all = append(all, strings.Trim(strings.TrimSpace(name), `"`))
	}
	return all
}
