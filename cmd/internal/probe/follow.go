package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Loss is where a container's packets, or the answers to them, get lost.
type Loss struct {
	Text string // for people
	Mend string // what to do; NETWORK stands for the overlay's range
}

// beginning is how long nft may take until it tells: it reads all rules first.
const beginning = 5 * time.Second

// follow sends to a target that does not answer, and tells what becomes of it. It is not lost if it answers now.
func (c *container) follow(ctx context.Context, to Target) (loss Loss, lost bool, err error) {
	from := c.addrs[0]
	for _, a := range c.addrs {
		if a.Is4() == to.Addr.Is4() {
			from = a
		}
	}
	before, err := legacyDrops(ctx, to.Addr.Is4())
	if err != nil {
		return loss, false, err
	}
	t, untraced := follow(ctx, from)
	defer t.stop()
	sent := 0
	for end := time.Now().Add(beginning); ; {
		results, err := c.ping(ctx, []Target{to}, Config{Count: 1, Timeout: 300 * time.Millisecond})
		if err != nil || results[0].Received > 0 {
			return loss, false, err
		}
		sent++
		if untraced != nil || t.place() != nowhere || time.Now().After(end) {
			break
		}
	}
	untraced = errors.Join(untraced, t.stop())
	after, err := legacyDrops(ctx, to.Addr.Is4())
	if err != nil {
		return loss, false, err
	}
	switch rule := grown(before, after, sent); {
	case t.drop != "":
		return t.dropped(ctx), true, nil
	case rule != "":
		return droppedByLegacy(rule, to.Addr.Is4()), true, nil
	case untraced != nil:
		return Loss{fmt.Sprintf("where is not known: %v", untraced), "with the command nft, and Linux 5.12, it could be followed"}, true, nil
	}
	return t.judge(c.link, to.Addr.Is4()), true, nil
}

// judge says what became of a packet that no known rule has dropped.
func (t *trail) judge(out string, v4 bool) Loss {
	if t.seen == arrived || t.seen == answerArrived {
		name := "net/ipv6/conf/all/forwarding" // IPv6 has no such thing for a link
		if v4 {
			name = "net/ipv4/conf/" + t.link + "/forwarding"
		}
		if value, err := os.ReadFile("/proc/sys/" + name); err == nil && strings.TrimSpace(string(value)) == "0" {
			return Loss{fmt.Sprintf("forwarding is off on %s: %s is 0", t.link, name),
				"sysctl -w " + name + "=1; another program has turned it off: look in /etc/sysctl.d, and at NetworkManager and systemd-networkd"}
		}
	}
	return map[int]Loss{
		nowhere:         {"nothing of it comes out of " + out, "rules for bridges drop it: ebtables -L, nft list ruleset bridge"},
		arrived:         {"the kernel does not forward what comes by " + t.link, "look at ip route, ip rule, and rp_filter of " + t.link},
		forwarded:       {"it is forwarded, and does not leave", "rules that nft does not know of drop it: iptables-legacy-save, ip6tables-legacy-save"},
		left:            {"it leaves this host, and no answer comes back", "overlayctl doctor there: its firewall, and its route back"},
		answerArrived:   {"the kernel does not forward the answers that come by " + t.link, "look at ip route, ip rule, and rp_filter of " + t.link},
		answerForwarded: {"the answers are forwarded, and do not reach it", "rules that nft does not know of drop them: iptables-legacy-save, ip6tables-legacy-save"},
		answerLeft:      {"the answers leave by " + out + ", and do not reach it", "rules for bridges drop them: ebtables -L, nft list ruleset bridge"},
	}[t.seen]
}

// dropped is what to do about a rule of nftables, or of the iptables that makes such.
func (t *trail) dropped(ctx context.Context) Loss {
	loss := Loss{"dropped in " + t.drop, "accept NETWORK in " + t.base + ", as source and as destination"}
	words := strings.Fields(t.base) // family, table, chain
	switch {
	case len(words) != 3:
	case words[1] == "firewalld":
		loss.Mend = "firewall-cmd --permanent --zone=trusted --add-source=NETWORK; firewall-cmd --reload"
		if zones, err := exec.CommandContext(ctx, "firewall-cmd", "--get-active-zones").Output(); err == nil {
			loss.Text += "; firewalld's zones: " + strings.Join(strings.Fields(string(zones)), " ")
		}
	case t.ufw && words[1] == "filter":
		loss.Mend = "ufw route allow from NETWORK; ufw route allow to NETWORK"
	case words[0] == "ip":
		loss.Mend = acceptBefore("iptables", words[1], words[2])
	case words[0] == "ip6":
		loss.Mend = acceptBefore("ip6tables", words[1], words[2])
	}
	return loss
}

// acceptBefore are commands for iptables' tables, which other programs flush and make anew.
func acceptBefore(command, table, chain string) string {
	return fmt.Sprintf("%s -t %s -I %s -s NETWORK -j ACCEPT; %[1]s -t %[2]s -I %[3]s -d NETWORK -j ACCEPT", command, table, chain)
}
