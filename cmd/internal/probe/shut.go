package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
)

// Shut returns the rules by which packets reach single containers of the subnets from their own bridge only, as Docker
// makes them for each container from version 28 on. No other container can see them by trying.
func Shut(ctx context.Context, own []string) ([]string, error) {
	subnets := prefixes(own)
	rules, err := exec.CommandContext(ctx, "nft", "--stateless", "list", "ruleset").Output()
	if err != nil && !errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("nft list ruleset: %w", err)
	}
	found := shut(string(rules), subnets)
	for _, v4 := range []bool{true, false} {
		text, err := legacyRules(ctx, v4)
		if err != nil {
			return nil, err
		}
		for _, rule := range shut(text, subnets) {
			found = append(found, iptables(v4)+"-legacy "+rule)
		}
	}
	return found, nil
}

// shut reads rules as nft or iptables-save print them.
func shut(rules string, subnets []netip.Prefix) []string {
	var found []string
	place := "" // table and, of nft, chain
	opened := map[netip.Prefix]bool{}
	for line := range strings.Lines(rules) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "table "), strings.HasPrefix(line, "*"):
			place = strings.TrimSuffix(line, " {")
		case strings.HasPrefix(line, "chain "):
			table, _, _ := strings.Cut(place, " chain ")
			place = table + " " + strings.TrimSuffix(line, " {")
		}
		to := destination(words)
		if !to.IsValid() || !slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Bits() <= to.Bits() && s.Contains(to.Addr()) }) {
			continue
		}
		verdict := func(w string) bool { return slices.Contains(words, w) || slices.Contains(words, strings.ToUpper(w)) }
		switch {
		case verdict("accept"): // before it is dropped: what Docker makes of trusted_host_interfaces
			opened[to] = true
		case verdict("drop") && !opened[to] && (strings.Contains(line, "iifname != ") || strings.Contains(line, "! -i ")):
			found = append(found, place+": "+line)
		}
	}
	return found
}

// destination is the one that a rule is for; not valid if it is for many.
func destination(words []string) netip.Prefix {
	i := slices.IndexFunc(words, func(w string) bool { return w == "daddr" || w == "-d" })
	if i < 0 || i+1 >= len(words) {
		return netip.Prefix{}
	}
	if to, err := netip.ParsePrefix(words[i+1]); err == nil {
		return to
	}
	addr, err := netip.ParseAddr(words[i+1])
	if err != nil {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(addr, addr.BitLen())
}
