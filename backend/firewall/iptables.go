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
	forwardChain = "OVERLAYD-FORWARD" // of the filter table; all that is in it is ours
	forwardJump  = comment + " -j " + forwardChain
	comment      = "-m comment --comment overlayd"
	// xtablesWait is how long, in seconds, a command waits for another one that holds the xtables lock.
	xtablesWait = "5"
)

// Accept lets be forwarded what is inside Network, what answers it, and what a published port leads to, also where
// iptables' FORWARD policy is DROP.
type Accept struct{ Network netip.Prefix }

// Uplink lets packets from Network leave by Link; with Peers also those come in by it that begin a connection to Network:
// where there is no tunnel, it is how hosts of the overlay themselves reach its containers.
type Uplink struct {
	Network netip.Prefix
	Link    string
	Peers   bool
}

func (a Accept) place() string  { return iptablesOf(a.Network) }
func (u Uplink) place() string  { return iptablesOf(u.Network) }
func (a Accept) String() string { return commands(a) }
func (u Uplink) String() string { return commands(u) }

// forwarded is a rule in chain FORWARD.
type forwarded interface {
	Rule
	// lines are what iptables -S prints of it: word for word, or they seem to differ.
	lines() []string
}

// lines implements forwarded. The first is what most packets meet; multicast stays on a bridge, whose packets pass FORWARD
// as well where net.bridge.bridge-nf-call-iptables is on, and without it IPv6 finds no neighbour. What is begun from elsewhere, and what goes elsewhere
// than to an uplink, is left to whoever owns that: between Docker's bridges and the overlay only published ports lead.
func (a Accept) lines() []string {
	net, multicast := a.Network.Masked().String(), "224.0.0.0/4"
	if a.Network.Addr().Is6() {
		multicast = "ff00::/8"
	}
	return accept(
		"-s "+net+" -d "+net,
		"-s "+net+" -m conntrack --ctstate RELATED,ESTABLISHED",
		"-d "+net+" -m conntrack --ctstate RELATED,ESTABLISHED,DNAT",
		"-s "+net+" -d "+multicast,
	)
}

func (u Uplink) lines() []string {
	net := u.Network.Masked().String()
	if u.Peers {
		return accept("-s "+net+" -o "+u.Link, "-d "+net+" -i "+u.Link)
	}
	return accept("-s " + net + " -o " + u.Link)
}

func accept(matches ...string) []string {
	for i, match := range matches {
		matches[i] = fmt.Sprintf("-A %s %s %s -j ACCEPT", forwardChain, match, comment)
	}
	return matches
}

func commands(r forwarded) string {
	return r.place() + " " + strings.Join(r.lines(), "\n"+r.place()+" ")
}

// iptables is the filter table of one family, by the command of that name: it is what Docker runs, so that it leads to
// where Docker's rules are, be it the nft or the legacy variant. A host without the command has no rules of that kind
// to overcome, and gets none.
//
// Changes go through iptables-restore and not through one command a rule: it makes all of them at once.
type iptables struct{ command string }

// apply brings the rules there and tells whether it had to.
func (x iptables) apply(ctx context.Context, rules []Rule) (changed bool, err error) {
	now, err := Exec(ctx, "", x.command, "--wait", xtablesWait, "--table", "filter", "--list-rules")
	if errors.Is(err, exec.ErrNotFound) {
		return false, nil
	}
	// 3: the kernel has no such table, thus no rules of ours either.
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 3 && len(rules) == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var want []string
	for _, r := range rules {
		want = append(want, r.(forwarded).lines()...)
	}
	change := planForward(strings.Split(strings.TrimSpace(now), "\n"), want)
	if change == "" {
		return false, nil
	}
	_, err = Exec(ctx, change, x.command+"-restore", "--wait", xtablesWait, "--noflush")
	return err == nil, err
}

// planForward decides what to change in the filter table, given its rules as iptables -S prints them, and
// those wanted in our chain.
//
// Our chain comes first in FORWARD, because Docker's chains drop what comes to its bridges from elsewhere, overlay or
// not. Only DOCKER-USER goes before it, with all that stands before that: there operators restrict what may pass, which
// we must not undo.
func planForward(now, want []string) string {
	var forward, chain []string
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
