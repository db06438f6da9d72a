package bypass

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// parseIptables reads what iptables-save prints, of either family. Tables for translation are left out: what is translated never is fast.
func parseIptables(command, text string) (tables []*table) {
	family := "ip"
	if strings.HasPrefix(command, "ip6") {
		family = "ip6"
	}
	var t *table
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			t = &table{title: command + " " + line[1:], family: family, chains: map[string][]rule{}}
			if line != "*nat" {
				tables = append(tables, t)
			}
		case t == nil:
		case strings.HasPrefix(line, ":"):
			name, policy, _ := strings.Cut(line[1:], " ")
			if !strings.HasPrefix(policy, "-") {
				t.bases = append(t.bases, base{chain: name, hook: strings.ToLower(name), drops: !strings.HasPrefix(policy, "ACCEPT")})
			}
			t.chains[name] = nil
		case strings.HasPrefix(line, "-A ") || strings.HasPrefix(line, "["):
			if _, counted, ok := strings.Cut(line, "] -A "); ok {
				line = "-A " + counted
			}
			name, rest, _ := strings.Cut(strings.TrimPrefix(line, "-A "), " ")
			t.chains[name] = append(t.chains[name], iptablesRule(rest))
		}
	}
	for _, t := range tables {
		for _, rules := range t.chains {
			for i, r := range rules {
				if _, ours := t.chains[r.target]; r.target != "" && !ours {
					rules[i].verdict = acts // an extension: LOG, MARK, REJECT
				}
			}
		}
	}
	return tables
}

// remembering are matches that do something even where they are all of a rule that accepts: they count for others.
var remembering = []string{"recent", "quota", "nfacct", "rateest"}

// iptablesRule reads one line, without its chain.
func iptablesRule(text string) rule {
	r := rule{text: text, verdict: acts} // without a target it counts, as accounting does
	counts := false
	words, not := split(text), false
	for i := 0; i < len(words); i++ {
		value := ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		negated := not
		not = false
		switch words[i] {
		case "!":
			not = true
			continue
		case "-j", "-g":
			r.verdict, r.target = iptablesVerdict(words[i] == "-g", value)
			words = nil // what follows is the target's
		case "-m":
			counts = counts || slices.Contains(remembering, value)
			if !slices.Contains([]string{"comment", "tcp", "udp", "multiport", "conntrack", "state", "addrtype", "mark"}, value) {
				r.tests = append(r.tests, some)
			}
		case "--comment":
		case "-f":
			r.tests = append(r.tests, whether(!negated))
			continue // without a value
		case "--syn":
			r.tests = append(r.tests, whether(!negated))
			continue
		case "--tcp-flags":
			r.tests = append(r.tests, whether(!negated && i+2 < len(words) && slices.Contains(strings.Split(words[i+2], ","), "SYN")))
			i++
		case "--ctstate", "--state":
			r.tests = append(r.tests, byState(strings.Split(value, ","), negated))
		case "--src-type", "--dst-type":
			r.tests = append(r.tests, byKind(words[i] == "--src-type", value, negated))
		case "--mark":
			r.tests = append(r.tests, whether(!negated && marked(value)))
		case "-i", "-o":
			r.tests = append(r.tests, byLink(words[i] == "-i", []string{asPattern(value)}, negated))
		case "-s", "-d":
			r.tests = append(r.tests, addressTest(words[i] == "-s", []string{value}, negated))
		case "-p":
			if value != "all" {
				r.tests = append(r.tests, byProtocol([]string{value}, negated))
			}
		case "--dport", "--dports":
			r.tests = append(r.tests, portTest(strings.Split(value, ","), ":", negated))
		default: // an option, or its value
			r.tests = append(r.tests, some)
			continue
		}
		i++
	}
	if counts && r.verdict != acts {
		r.verdict, r.target = acts, ""
	}
	return r
}

func iptablesVerdict(branches bool, target string) (verdict, string) {
	switch {
	case target == "ACCEPT":
		return accept, ""
	case target == "RETURN":
		return back, ""
	case target == "DROP":
		return acts, ""
	case branches:
		return branch, target
	}
	return jump, target
}

// marked tells whether packets with a value as their mark have one. What is fast has none, but from rules that are found by themselves.
func marked(value string) bool {
	value, _, _ = strings.Cut(value, "/")
	mark, err := strconv.ParseUint(value, 0, 32)
	return err == nil && mark != 0
}

// whether is none for what is never fast, and else some.
func whether(slow bool) test {
	if slow {
		return none
	}
	return some
}

// asPattern is a link's name as nft has it: iptables writes a + where nft has a *.
func asPattern(name string) string {
	if prefix, ok := strings.CutSuffix(name, "+"); ok {
		return prefix + "*"
	}
	return name
}

// addressTest is some where it cannot be read: a set, an odd mask.
func addressTest(source bool, values []string, not bool) test {
	ranges, err := prefixes(values)
	if err != nil {
		return some
	}
	return byAddress(source, ranges, not)
}

func prefixes(values []string) (all []netip.Prefix, err error) {
	for _, v := range values {
		if a, err := netip.ParseAddr(v); err == nil {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(v)
		if err != nil {
			return nil, fmt.Errorf("range %s: %w", v, err)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

// portTest is some where it cannot be read.
func portTest(values []string, to string, not bool) test {
	var all []span
	for _, v := range values {
		first, last, ranged := strings.Cut(v, to)
		if !ranged {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		until, lastErr := strconv.ParseUint(last, 10, 16)
		if err != nil || lastErr != nil {
			return some
		}
		all = append(all, span{uint16(from), uint16(until)})
	}
	return byPort(all, not)
}

// split is a line in words. What stands in quotes is one, with the quote that begins it, and so is what stands in braces.
func split(line string) (words []string) {
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		end := strings.IndexAny(line, " \t")
		switch line[0] {
		case '"':
			for end = 1; end < len(line) && line[end] != '"'; end++ {
				if line[end] == '\\' {
					end++
				}
			}
			words = append(words, line[:min(end, len(line))])
			line = line[min(end+1, len(line)):]
			continue
		case '{':
			end = strings.IndexByte(line, '}') + 1
		}
		if end <= 0 {
			end = len(line)
		}
		words = append(words, line[:end])
		line = line[end:]
	}
	return words
}
