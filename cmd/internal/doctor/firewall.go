package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os/exec"
	"strings"
)

// forwardChain is where overlayd accepts what containers send and receive.
const forwardChain = "OVERLAYD-FORWARD"

// bridgeNetfilter asks whether packets between containers of this host pass iptables.
func bridgeNetfilter(ctx context.Context, h *Host) Finding {
	found := ok("off")
	for _, pool := range h.Network.Pools {
		name := "bridge-nf-call-" + iptablesCommand(pool.Prefix)
		value, err := sysctl("net.bridge." + name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return ok("not loaded")
		case err != nil:
			return unknown(err)
		case value == "0":
			continue
		}
		if drops, accepts, err := iptablesForward(ctx, pool.Prefix); err == nil && drops && !accepts {
			return fail(name+" is on and iptables drops what passes: containers of this host do not reach each other either",
				"see firewall below; or, unless Docker or Kubernetes need it: sysctl -w net.bridge."+name+"=0")
		}
		found = ok("on: packets between containers of this host pass iptables, which costs some of their speed")
	}
	return found
}

// forwardRules asks whether a firewall drops what containers send to other hosts.
func forwardRules(ctx context.Context, h *Host) Finding {
	if len(h.Network.Pools) == 0 {
		return skip("the network is not known")
	}
	for _, pool := range h.Network.Pools {
		drops, accepts, err := iptablesForward(ctx, pool.Prefix)
		if err != nil {
			return unknown(err)
		}
		if command := iptablesCommand(pool.Prefix); drops && !accepts {
			return fail(fmt.Sprintf("%s drops what is forwarded, and does not accept %s", command, pool.Prefix),
				fmt.Sprintf("overlayd accepts it in chain %s while it runs; until then: %s -I FORWARD -s %s -j ACCEPT; %[2]s -I FORWARD -d %[3]s -j ACCEPT",
					forwardChain, command, pool.Prefix))
		}
	}
	chains, err := droppingChains(ctx)
	if err != nil {
		return unknown(err)
	}
	if len(chains) > 0 {
		return warn(fmt.Sprintf("nftables drops what is forwarded and not accepted in %s", list(chains)),
			"overlayd adds no rules to other programs' chains: accept the network there, as ip saddr and as ip daddr")
	}
	return ok("nothing drops what is forwarded")
}

func iptablesCommand(network netip.Prefix) string {
	if network.Addr().Is4() {
		return "iptables"
	}
	return "ip6tables"
}

// iptablesForward tells whether iptables drops what is forwarded, by policy or by a rule for everything, and whether it
// accepts the network before. A host without the command has no such rules.
func iptablesForward(ctx context.Context, network netip.Prefix) (drops, accepts bool, err error) {
	out, err := exec.CommandContext(ctx, iptablesCommand(network), "--wait", "5", "--list-rules").Output()
	if errors.Is(err, exec.ErrNotFound) {
		return false, false, nil
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if exit.ExitCode() == 3 { // the kernel has no such table
			return false, false, nil
		}
		return false, false, fmt.Errorf("%s: %s", iptablesCommand(network), firstLine(exit.Stderr))
	}
	drops, accepts = judgeForward(string(out), network)
	return drops, accepts, err
}

// judgeForward reads rules as iptables -S prints them. The network is accepted by the rules of our chain, if FORWARD
// leads there, or by such rules in FORWARD itself.
func judgeForward(rules string, network netip.Prefix) (drops, accepts bool) {
	from, to := map[string]bool{}, map[string]bool{} // by chain
	jumps := false
	for line := range strings.Lines(rules) {
		line = strings.TrimSpace(line)
		chain, rule, _ := strings.Cut(strings.TrimPrefix(line, "-A "), " ")
		accept := strings.HasSuffix(rule, "-j ACCEPT")
		switch {
		case line == "-P FORWARD DROP", line == "-A FORWARD -j DROP", strings.HasPrefix(line, "-A FORWARD -j REJECT"):
			drops = true
		case chain == "FORWARD" && strings.HasSuffix(rule, "-j "+forwardChain):
			jumps = true
		case accept && strings.HasPrefix(rule, "-s "+network.String()+" "):
			from[chain] = true
		case accept && strings.HasPrefix(rule, "-d "+network.String()+" "):
			to[chain] = true
		}
	}
	ours := jumps && from[forwardChain] && to[forwardChain]
	return drops, ours || from["FORWARD"] && to["FORWARD"]
}

func firstLine(stderr []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(stderr)), "\n")
	return line
}

// droppingChains are the chains of nftables, iptables' own aside, that drop what is forwarded and what no rule of
// theirs accepts. What their rules accept is not known here.
func droppingChains(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "nft", "--json", "list", "chains").Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("nft: %s", firstLine(exit.Stderr))
	}
	if err != nil {
		return nil, err
	}
	var listed struct {
		Nftables []struct {
			Chain *struct{ Family, Table, Name, Hook, Policy string }
		}
	}
	if err := json.Unmarshal(out, &listed); err != nil {
		return nil, fmt.Errorf("nft: %w", err)
	}
	var found []string
	for _, object := range listed.Nftables {
		c := object.Chain
		if c == nil || c.Hook != "forward" || c.Policy != "drop" || c.Table == "filter" && c.Name == "FORWARD" {
			continue
		}
		found = append(found, c.Family+" "+c.Table+" "+c.Name)
	}
	return found, nil
}
