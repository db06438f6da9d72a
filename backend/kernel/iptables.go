package kernel

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
	forwardChain = "OVERLAYD-FORWARD" // of the filter table; all that is in it is ours
	forwardJump  = "-m comment --comment overlayd -j " + forwardChain
	// xtablesWait is how long, in seconds, a command waits for another one that holds the xtables lock.
	xtablesWait = "10"
)

// Key implements Object.
func (a Accept) Key() Key { return Key{name: "accept", prefix: a.Network} }

// Kind implements Object.
func (Accept) Kind() Kind { return KindFirewall }

func (a Accept) String() string {
	lines := acceptRules(a.Network)
	for i, line := range lines {
		lines[i] = a.command() + " " + line
	}
	return strings.Join(lines, "\n")
}

func (a Accept) command() string {
	if a.Network.Addr().Is6() {
		return "ip6tables"
	}
	return "iptables"
}

// acceptRules are the rules for a network as iptables -S prints them: word for word, or they seem to differ.
func acceptRules(network netip.Prefix) []string {
	network = network.Masked()
	return []string{
		fmt.Sprintf("-A %s -s %s -m comment --comment overlayd -j ACCEPT", forwardChain, network),
		fmt.Sprintf("-A %s -d %s -m comment --comment overlayd -j ACCEPT", forwardChain, network),
	}
}

// iptables is the filter table of one family, by the command of that name: it is what Docker runs, so that it leads to
// where Docker's rules are, be it the nft or the legacy variant. A host without the command has no rules of that kind
// to overcome, and gets none.
//
// Changes go through iptables-restore and not through one command a rule: it makes all of them at once.
type iptables struct {
	command string                // iptables or ip6tables
	is      func(netip.Addr) bool // tells the addresses of the family
}

// apply brings the accept rules for the networks there.
func (x iptables) apply(ctx context.Context, networks []netip.Prefix) error {
	change, err := x.plan(ctx, networks)
	if err != nil || change == "" {
		return err
	}
	return x.restore(ctx, change)
}

// plan returns the input for iptables-restore that brings the accept rules for the networks there, "" where they are.
func (x iptables) plan(ctx context.Context, networks []netip.Prefix) (string, error) {
	var ours []netip.Prefix
	for _, n := range networks {
		if x.is(n.Addr()) {
			ours = append(ours, n)
		}
	}
	now, err := runCommand(ctx, "", x.command, "--wait", xtablesWait, "--table", "filter", "--list-rules")
	if errors.Is(err, exec.ErrNotFound) {
		return "", nil
	}
	// 3: the kernel has no such table, thus no rules of ours either.
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 3 && len(ours) == 0 {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return planForward(strings.Split(strings.TrimSpace(now), "\n"), ours), nil
}

func (x iptables) restore(ctx context.Context, change string) error {
	_, err := runCommand(ctx, change, x.command+"-restore", "--wait", xtablesWait, "--noflush")
	return err
}

// runCommand runs a command of the firewall and returns what it prints. The error says what it complained of.
func runCommand(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		said := strings.ReplaceAll(strings.TrimSpace(stderr.String()), "\n", "; ")
		return "", fmt.Errorf("%s: %w: %s", name, err, said)
	}
	return string(out), nil
}

// planForward decides what to change in the filter table, given its rules as iptables -S prints them.
//
// Our chain comes first in FORWARD, because Docker's chains drop what comes to its bridges from elsewhere, overlay or
// not. Only DOCKER-USER goes before it, with all that stands before that: there operators restrict what may pass, which
// we must not undo.
func planForward(now []string, networks []netip.Prefix) string {
	var forward, chain, want []string
	exists := false
	for _, line := range now {
		line = strings.ReplaceAll(line, `"`, "") // some versions print the comment in quotes
		switch {
		case line == "-N "+forwardChain:
			exists = true
		case strings.HasPrefix(line, "-A "+forwardChain+" "):
			chain = append(chain, line)
		case strings.HasPrefix(line, "-A FORWARD "):
			forward = append(forward, line)
		}
	}
	for _, n := range networks {
		want = append(want, acceptRules(n)...)
	}
	jumpsToUs := func(line string) bool { return strings.HasSuffix(line, " -j "+forwardChain) }
	jumps := slices.DeleteFunc(slices.Clone(forward), func(line string) bool { return !jumpsToUs(line) })
	others := slices.DeleteFunc(slices.Clone(forward), jumpsToUs)
	place := slices.Index(others, "-A FORWARD -j DOCKER-USER") + 1
	jump := "-A FORWARD " + forwardJump
	switch {
	case len(want) == 0 && !exists && len(jumps) == 0:
		return ""
	case len(want) > 0 && slices.Equal(chain, want) && slices.Equal(jumps, []string{jump}) && forward[place] == jump:
		return ""
	}
	lines := []string{"*filter", ":" + forwardChain + " - [0:0]"} // makes the chain, or flushes it
	for _, line := range jumps {
		lines = append(lines, "-D"+strings.TrimPrefix(line, "-A"))
	}
	if len(want) == 0 {
		lines = append(lines, "-X "+forwardChain)
	} else {
		lines = append(lines, want...)
		lines = append(lines, fmt.Sprintf("-I FORWARD %d %s", place+1, forwardJump))
	}
	return strings.Join(append(lines, "COMMIT\n"), "\n")
}
