package firewall

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tableName is that of our tables, of which there is one in a family; all that is in them is ours.
const tableName = "overlayd"

// ruled is a rule of a table of nftables.
type ruled interface {
	Rule
	// nft are the lines for nft, of which several rules may have the same: first what declares sets, counters and chains,
	// and then what fills the chains. Elements of sets are not among them.
	nft() []string
}

// table is the static part of one of our tables: chains, and sets as they are declared. What nft prints is compared with what
// it printed after the last change and not with what it was given: its versions word the same rule differently.
type table struct {
	family    string // as nft has it
	lines     []string
	installed string                // the table as it was printed; "" is none
	declared  time.Time             // when its sets were last made known
	unguarded atomic.Pointer[error] // why the guard is not among its rules
}

// families are those of the tables, as the kernel numbers them.
var families = map[string]uint8{"inet": unix.NFPROTO_INET, "bridge": unix.NFPROTO_BRIDGE}

// apply brings the table there and tells whether it had to. No rule meets a set that is empty because it is new: fill puts in
// what is to be there.
func (t *table) apply(ctx context.Context, rules []Rule, fill func(sets []Set, anew bool) error) (changed bool, err error) {
	lines := linesOf(rules)
	now, err := t.list(ctx)
	switch {
	case errors.Is(err, exec.ErrNotFound) && len(lines) > 0:
		return false, fmt.Errorf("this needs the command nft: install the package nftables: %w", err)
	case err != nil && len(lines) == 0 && !errors.Is(err, ErrHangs) && ctx.Err() == nil:
		return false, nil // no nftables, then
	case err != nil:
		return false, err
	case now == t.installed && slices.Equal(t.lines, lines) && (now == "") == (len(lines) == 0):
		return false, nil
	}
	t.lines = nil // until it is known how they are printed
	if err = t.replace(ctx, now, lines, fill); err != nil && now != "" && len(lines) > 0 && ctx.Err() == nil {
		// Something of the name is there, of another kind.
		if _, err = Exec(ctx, t.change("", nil), "nft", "-f", "-"); err == nil {
			err = t.replace(ctx, "", lines, fill)
		}
	}
	if err != nil {
		return false, fmt.Errorf("replace nft table %s %s: %w", t.family, tableName, err)
	}
	if t.installed, err = t.list(ctx); err == nil {
		t.lines = lines
	}
	return true, err
}

// replace makes the table, which is as printed, what the lines say.
func (t *table) replace(ctx context.Context, now string, lines []string, fill func(sets []Set, anew bool) error) error {
	declare := []string{"add table " + t.family + " " + tableName}
	for _, line := range lines {
		if words := strings.Fields(line); words[1] == "set" && !strings.Contains(now, "\n\tset "+words[4]+" {") {
			declare = append(declare, line)
		}
	}
	if len(declare) > 1 {
		if _, err := Exec(ctx, strings.Join(declare, "\n")+"\n", "nft", "-f", "-"); err != nil {
			return err
		}
		if err := fill(t.sets(lines), true); err != nil {
			return err // rules would drop what elements are to let in
		}
	}
	_, err := Exec(ctx, t.change(now, lines), "nft", "-f", "-")
	return err
}

// printed finds what a table has, as nft prints it.
var printed = regexp.MustCompile(`(?m)^\t(chain|set|map|counter) (\S+) \{`)

// change is a transaction for nft that makes the table what the lines say. Of a table that is there, as printed, sets and
// counters stay with what is in them, but those that no line declares; all else is made anew. The kernel switches from the
// old rules to the new ones between two packets.
func (t *table) change(now string, lines []string) string {
	name := t.family + " " + tableName
	change := []string{"add table " + name} // lets what follows succeed where there is none; nft knows "destroy" only since 1.0.7
	if len(lines) == 0 {
		change = append(change, "delete table "+name)
	} else {
		change = append(change, "flush table "+name)
		for _, had := range printed.FindAllStringSubmatch(now, -1) {
			object := fmt.Sprintf("%s %s %s", had[1], name, had[2])
			stays := func(line string) bool { return strings.HasPrefix(line+" ", "add "+object+" ") }
			if had[1] == "chain" || !slices.ContainsFunc(lines, stays) {
				change = append(change, "delete "+object)
			}
		}
		change = append(change, lines...)
	}
	return strings.Join(change, "\n") + "\n"
}

// list is the table as nft prints it but for elements of sets and counts, "" where there is none.
func (t *table) list(ctx context.Context) (string, error) {
	text, err := Exec(ctx, "", "nft", "--stateless", "--terse", "list", "table", t.family, tableName)
	if err != nil && strings.Contains(err.Error(), "No such file or directory") {
		return "", nil
	}
	return text, err
}

// sets are those that lines declare.
func (t *table) sets(lines []string) (sets []Set) {
	for _, line := range lines {
		if words := strings.Fields(line); words[0] == "add" && (words[1] == "set" || words[1] == "map") {
			sets = append(sets, Set{families[t.family], words[4]})
		}
	}
	return sets
}

// linesOf are the lines of rules, each once: those that declare before those that fill.
func linesOf(rules []Rule) []string {
	var declare, fill []string
	seen := map[string]bool{}
	for _, r := range rules {
		for _, line := range r.(ruled).nft() {
			to := &declare
			if strings.HasPrefix(line, "add rule ") {
				to = &fill
			}
			if !seen[line] {
				seen[line] = true
				*to = append(*to, line)
			}
		}
	}
	return append(declare, fill...)
}
