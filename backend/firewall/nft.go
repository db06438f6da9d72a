package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
)

const (
	nftTable = "overlayd"    // of family inet; all that is in it is ours
	nftChain = "postrouting" // its only chain
	nftHook  = "type nat hook postrouting priority srcnat;"
)

// Masquerade hides packets from Network behind the host when they leave Network.
type Masquerade struct{ Network netip.Prefix }

func (Masquerade) place() string { return "nft" }

func (m Masquerade) String() string {
	return fmt.Sprintf("nft add rule inet %s %s %s", nftTable, nftChain, m.rule())
}

// rule is the rule in nft's words. The comparisons stand in the order that lets most connections off first: of
// others, inside the network. Source ports are drawn at random, because two CPUs that pick the next free one at once
// pick the same and the kernel drops one of the packets.
func (m Masquerade) rule() string {
	net := m.Network
	if net.Addr().Is4() {
		return fmt.Sprintf("ip saddr %s ip daddr != %s ip daddr != 224.0.0.0/4 ip daddr != 255.255.255.255 masquerade fully-random", net, net)
	}
	return fmt.Sprintf("ip6 saddr %s ip6 daddr != %s ip6 daddr != ff00::/8 masquerade fully-random", net, net)
}

// nft holds our table. What nft prints is compared with what it printed after the last change and not with what it was
// given: its versions word the same rule differently.
type nft struct {
	rules     []Rule
	installed string // the table as it was printed; "" is none
}

// apply brings the table there and tells whether it had to.
func (n *nft) apply(ctx context.Context, rules []Rule) (changed bool, err error) {
	now, err := listTable(ctx)
	switch {
	case errors.Is(err, exec.ErrNotFound) && len(rules) > 0:
		return false, fmt.Errorf("masquerading needs the command nft: install the package nftables: %w", err)
	case err != nil && len(rules) == 0 && !errors.Is(err, errHangs) && ctx.Err() == nil:
		return false, nil // no nftables, then
	case err != nil:
		return false, err
	case now == n.installed && slices.Equal(n.rules, rules) && (now == "") == (len(rules) == 0):
		return false, nil
	}
	n.rules = nil // until it is known how they are printed
	if _, err := run(ctx, replaceTable(rules), "nft", "-f", "-"); err != nil {
		return false, fmt.Errorf("replace nft table inet %s: %w", nftTable, err)
	}
	if n.installed, err = listTable(ctx); err == nil {
		n.rules = rules
	}
	return true, err
}

// replaceTable is a transaction for nft that removes the table and makes it anew, or not where there is no rule. The
// kernel switches from the old rules to the new ones between two packets.
func replaceTable(rules []Rule) string {
	// Adding is what lets the deletion succeed where there is no table; nft knows "destroy" only since 1.0.7.
	lines := []string{"add table inet " + nftTable, "delete table inet " + nftTable}
	if len(rules) > 0 {
		lines = append(lines, "add table inet "+nftTable, fmt.Sprintf("add chain inet %s %s { %s }", nftTable, nftChain, nftHook))
	}
	for _, r := range rules {
		lines = append(lines, strings.TrimPrefix(r.String(), "nft "))
	}
	return strings.Join(lines, "\n") + "\n"
}

// listTable is the table as nft prints it, "" where there is none.
func listTable(ctx context.Context) (string, error) {
	text, err := run(ctx, "", "nft", "list", "table", "inet", nftTable)
	if err != nil && strings.Contains(err.Error(), "No such file or directory") {
		return "", nil
	}
	return text, err
}
