package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// iptables is the command of one family.
func iptables(v4 bool) string {
	if v4 {
		return "iptables"
	}
	return "ip6tables"
}

// legacyRules is what iptables-legacy-save says, which nft does not know of; nothing where the kernel has no such tables:
// to ask for them would make them.
func legacyRules(ctx context.Context, v4 bool) (string, error) {
	names := "/proc/thread-self/net/ip6_tables_names"
	if v4 {
		names = "/proc/thread-self/net/ip_tables_names"
	}
	text, err := os.ReadFile(names)
	tables := strings.Fields(string(text))
	if errors.Is(err, os.ErrNotExist) || err == nil && len(tables) == 0 {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	command := iptables(v4) + "-legacy-save"
	out, err := exec.CommandContext(ctx, command, "--counters").Output()
	if err != nil {
		return "", fmt.Errorf("legacy rules in tables %s cannot be read: %s: %w", strings.Join(tables, ", "), command, err)
	}
	return string(out), nil
}

// counted is a rule, or a policy, and how many packets it was for.
var counted = regexp.MustCompile(`^\[(\d+):\d+\] -A (.*)$|^:(\S+ DROP) \[(\d+):\d+\]$`)

// legacyDrops are the rules and policies of legacy iptables that drop, each as "TABLE CHAIN RULE", with the number of
// packets that they have dropped.
func legacyDrops(ctx context.Context, v4 bool) (map[string]int, error) {
	text, err := legacyRules(ctx, v4)
	drops, table := map[string]int{}, ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		}
		m := counted.FindStringSubmatch(line)
		if m == nil || m[2] != "" && !strings.HasSuffix(m[2], "-j DROP") && !strings.Contains(m[2], "-j REJECT") {
			continue
		}
		packets, _ := strconv.Atoi(m[1] + m[4]) // one of them is empty
		drops[table+" "+m[2]+m[3]] += packets
	}
	return drops, err
}

// grown is the rule that has dropped so many packets in between, and of several the one with the fewest: others have
// dropped packets of others too. It is empty if there is none.
func grown(before, after map[string]int, packets int) string {
	found, least := "", 0
	for rule, count := range after {
		if n := count - before[rule]; n >= packets && (found == "" || n < least) {
			found, least = rule, n
		}
	}
	return found
}

// droppedByLegacy is what to do about one of legacyDrops.
func droppedByLegacy(rule string, v4 bool) Loss {
	command := iptables(v4) + "-legacy"
	table, rest, _ := strings.Cut(rule, " ")
	chain, _, _ := strings.Cut(rest, " ")
	return Loss{
		fmt.Sprintf("dropped by %s, table %s: %s", command, table, rest),
		acceptBefore(command, table, chain) + "; or, if nothing else needs these rules beside nft's: remove them",
	}
}
