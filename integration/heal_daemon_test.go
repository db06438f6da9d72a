package integration

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// soon is within what damage must be undone: because the kernel says so, and not by an audit, of which there is one each five minutes.
var soon = slow * 20 * time.Second

// damage is what somebody, or some program, does to a host's objects by hand.
type damage struct {
	name   string
	do     string // for sh; LINK, PEER, VTEP, MAC and IP stand for the vxlan link, the peer's subnet and VTEP, and -4 or -6
	kind   string // of the objects that are healed, as metrics call them
	remove string // of another thing that stands beside ours and must still be there: how it is removed
}

var damages = []damage{
	{name: "route removed", do: "ip IP route del PEER proto 111", kind: "route"},
	{name: "route replaced", do: "ip IP route replace PEER via VTEP dev LINK onlink proto 111 metric $(ip IP route show PEER | sed 's/.*metric \\([0-9]*\\).*/\\1/') mtu 900 && ip IP route del PEER proto 111", kind: "route"},
	{name: "route of another beside ours", do: "ip IP route replace blackhole PEER metric 9000 && ip IP route del PEER proto 111", kind: "route",
		remove: "ip IP route del blackhole PEER metric 9000"},
	{name: "neighbour removed", do: "ip IP neighbour del VTEP dev LINK", kind: "neighbour"},
	{name: "neighbour changed", do: "ip IP neighbour replace VTEP lladdr 02:09:09:09:09:09 nud permanent dev LINK", kind: "neighbour"},
	{name: "FDB entry removed", do: "bridge fdb del MAC dev LINK", kind: "fdb"},
	{name: "address removed", do: "ip IP address del $(ip IP -br address show dev LINK scope global | awk '{print $3}') dev LINK", kind: "address"},
	{name: "link deleted", do: "ip link del LINK", kind: "link"},
	{name: "link set down", do: "ip link set LINK down", kind: "link"},
	{name: "another MAC", do: "ip link set LINK address 02:08:08:08:08:08", kind: "link"},
	{name: "another MTU", do: "ip link set LINK mtu 1300", kind: "link"},
	{name: "forwarding turned off", do: "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0", kind: "sysctl"},
	{name: "nft table removed", do: "nft delete table inet overlayd", kind: "firewall"},
	{name: "nft ruleset flushed", do: "nft flush ruleset", kind: "firewall"},
	{name: "nft rule removed", do: "nft flush chain inet overlayd postrouting", kind: "firewall"},
	{name: "guard's chain flushed", do: "nft flush chain inet overlayd tunnel", kind: "firewall"},
	{name: "guard's peers removed", do: "nft flush set inet overlayd peers4; nft flush set inet overlayd peers6", kind: "element"},
	{name: "peer added to the guard's", do: "nft add element inet overlayd peers4 '{ 203.0.113.66 }'", kind: "element"},
	{name: "ARP turned on", do: "ip link set LINK arp on", kind: "link"},
	{name: "iptables chain flushed", do: "iptables -F OVERLAYD-FORWARD; ip6tables -F OVERLAYD-FORWARD", kind: "firewall"},
	{name: "iptables jump removed", do: "iptables -F FORWARD; ip6tables -F FORWARD", kind: "firewall"},
}

// TestHealsDamage undoes whatever is done to a host by hand: soon, completely, with a line in the log and a count.
func TestHealsDamage(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	h, peer := hosts[0], hosts[1]
	before := h.Dump() + h.rules()
	for i, family := range lab.families() {
		for _, d := range damages {
			if i > 0 && !strings.Contains(d.do, "LINK") && !strings.Contains(d.do, "PEER") {
				continue // it was of both families
			}
			t.Run(d.name+" "+family, func(t *testing.T) {
				words := h.words(peer, i)
				lines, count := strings.Count(h.Daemon.Output.String(), "msg=healed"), h.healed(d.kind)
				h.Exec("sh", "-c", words.Replace(d.do))
				begin := time.Now()
				eventually(t, "healed", func() error {
					if n := h.healed(d.kind); n <= count {
						return fmt.Errorf("%v objects of kind %s healed, as before", n, d.kind)
					}
					return nil
				})
				if d.remove != "" {
					h.Exec("sh", "-c", words.Replace(d.remove))
				}
				sameSoon(t, h, before)
				took := time.Since(begin)
				t.Logf("measured: healed within %v", took.Round(10*time.Millisecond))
				if took > soon {
					t.Errorf("it took %v", took)
				}
				// One of the same cause within the last minute speaks for it.
				if n := strings.Count(h.Daemon.Output.String(), "msg=healed") - lines; n > 2 || lines+n == 0 {
					t.Errorf("%d lines in the log, want one", n)
				}
			})
		}
	}
}

// words replaces what stands for the host's own names in a damage.
func (h *Host) words(peer *Host, family int) *strings.Replacer {
	h.t.Helper()
	link := []string{"overlay.1", "overlay6.1"}[family]
	subnet := networkOf(envValue(h.t, peer, "FLANNEL_SUBNET"))
	if family == 1 {
		subnet = strings.Replace(envValue(h.t, peer, "FLANNEL_IPV6_SUBNET"), "::1/64", "::/64", 1)
	}
	vtep, _, _ := strings.Cut(subnet, "/")
	mac := strings.Fields(peer.Exec("ip", "-br", "link", "show", link))[2]
	return strings.NewReplacer("LINK", link, "PEER", subnet, "VTEP", vtep, "MAC", mac, "IP ", h.lab.families()[family]+" ")
}

// healed is how many objects of a kind the daemon says it has healed.
func (h *Host) healed(kind string) float64 {
	h.t.Helper()
	return h.metric(`overlayd_kernel_healed_total{kind="` + kind + `"}`)
}

// rules is what Dump leaves out: iptables' rules, and the parameters that overlayd sets.
func (h *Host) rules() string {
	h.t.Helper()
	return h.Exec("sh", "-c", "iptables-save -t filter | grep -v '^#' | sed 's/\\[.*//'; ip6tables-save -t filter | grep -v '^#' | sed 's/\\[.*//'; sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding")
}

// sameSoon waits until the host is as it was, whatever the order of things.
func sameSoon(t *testing.T, h *Host, before string) {
	t.Helper()
	eventually(t, "the host is as it was", func() error {
		if missing, extra := difference(before, h.Dump()+h.rules()); missing != "" || extra != "" {
			return fmt.Errorf("missing\n%s\nand too much\n%s", missing, extra)
		}
		return nil
	})
}

// difference are the lines that only one of two dumps has. Links made anew have other indexes, and other names follow
// from them.
func difference(before, after string) (missing, extra string) {
	count := map[string]int{}
	for line := range strings.Lines(before) {
		count[steady(line)]++
	}
	for line := range strings.Lines(after) {
		count[steady(line)]--
	}
	for line, n := range count {
		switch {
		case n > 0:
			missing += line
		case n < 0:
			extra += line
		}
	}
	return missing, extra
}

// steady leaves out of a line what tells one making of the same thing from another.
func steady(line string) string {
	line = linkIndex.ReplaceAllString(line, "")
	if strings.Contains(line, "inet6 fe80::") || strings.HasPrefix(line, "fe80::") || strings.Contains(line, " fe80::") {
		return "a link-local address\n"
	}
	return line
}

var linkIndex = regexp.MustCompile(`^\d+: |# handle \d+`)
