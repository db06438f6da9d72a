package doctor

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// accepted is what overlayd adds to iptables.
const accepted = "iptables -N OVERLAYD-FORWARD; iptables -A OVERLAYD-FORWARD -s 10.5.0.0/16 -m comment --comment overlayd -j ACCEPT; " +
	"iptables -A OVERLAYD-FORWARD -d 10.5.0.0/16 -m comment --comment overlayd -j ACCEPT; iptables -I FORWARD -m comment --comment overlayd -j OVERLAYD-FORWARD"

// firewalld is the part of firewalld's table that matters here: what it does with forwarded packets of links in no zone
// that lets them through.
const firewalld = `nft -f - <<EOF
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state established,related accept
		ct status dnat accept
		iifname "lo" accept
		jump filter_FORWARD_POLICIES
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD_POLICIES {
		ip saddr 10.6.0.0/16 accept
	}
}
EOF
`

// trusted is what firewalld makes of the overlay's range in its trusted zone.
const trusted = firewalld + "nft add rule inet firewalld filter_FORWARD_POLICIES ip saddr 10.5.0.0/16 accept"

// cni0 is a bridge as the CNI plugin leaves it, with a container.
const cni0 = `
ip link add cni0 type bridge
ip link set cni0 address 02:00:00:00:01:01 up
ip address add 10.5.1.1/24 dev cni0
ip link add c1 type veth peer name eth0 netns %[1]s
ip link set c1 master cni0 up
ip -n %[1]s link set eth0 up
`

// cutOff are hosts whose containers are cut off and which reach others themselves; and some that only look so.
var cutOff = []struct {
	name, here   string
	noPeer       bool
	level        Level
	text, advice string
}{
	{name: "policy drop", here: "iptables -P FORWARD DROP", level: Fail,
		text: "dropped in ip filter FORWARD: policy drop", advice: "iptables -t filter -I FORWARD -s 10.5.0.0/16 -j ACCEPT; iptables -t filter -I FORWARD -d 10.5.0.0/16 -j ACCEPT"},
	{name: "rejected", here: "iptables -A FORWARD -j REJECT", level: Fail, text: "dropped in ip filter FORWARD: "},
	{name: "chain without jump", here: accepted + "; iptables -P FORWARD DROP; iptables -F FORWARD", level: Fail, text: "ip filter FORWARD: policy drop"},
	{name: "dropped and accepted", here: accepted + "; iptables -P FORWARD DROP", level: OK},
	{name: "nftables drops", here: "nft 'add table inet site; add chain inet site fw { type filter hook forward priority 0; policy drop; }'", level: Fail,
		text: "dropped in inet site fw: policy drop", advice: "accept 10.5.0.0/16 in inet site fw"},
	{name: "nftables drops and accepts", level: OK,
		here: "nft 'add table inet site; add chain inet site fw { type filter hook forward priority 0; policy drop; }; add rule inet site fw ip saddr 10.5.0.0/16 accept'"},
	{name: "answers dropped", here: "iptables -A FORWARD -i overlay.1 -j DROP", level: Fail, text: `dropped in ip filter FORWARD: iifname "overlay.1"`},
	{name: "firewalld", here: firewalld, level: Fail, text: "dropped in inet firewalld filter_FORWARD: reject", advice: "firewall-cmd --permanent --zone=trusted --add-source=10.5.0.0/16; firewall-cmd --reload"},
	{name: "firewalld trusts the overlay", here: trusted, level: OK},
	{name: "ufw", here: "iptables -N ufw-before-forward; iptables -A FORWARD -j ufw-before-forward; " + // it passes echoes
		"iptables -A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT; iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables -P FORWARD DROP", level: Fail,
		text: "dropped in ip filter FORWARD: policy drop", advice: "ufw route allow from 10.5.0.0/16; ufw route allow to 10.5.0.0/16"},
	{name: "legacy policy beside nft", here: accepted + "; iptables-legacy -P FORWARD DROP", level: Fail,
		text: "dropped by iptables-legacy, table filter: FORWARD DROP", advice: "iptables-legacy -t filter -I FORWARD -s 10.5.0.0/16"},
	{name: "legacy rule of a chain", here: "iptables-legacy -N X; iptables-legacy -A X -i overlay.1 -j DROP; iptables-legacy -A FORWARD -j X", level: Fail,
		text: "dropped by iptables-legacy, table filter: X -i overlay.1 -j DROP"},
	{name: "legacy raw", here: "iptables-legacy -t raw -A PREROUTING -d 10.5.1.128/25 -i overlay.1 -j DROP", level: Fail, text: "table raw: PREROUTING -d 10.5.1.128/25"},
	{name: "legacy mangle", here: "iptables-legacy -t mangle -A POSTROUTING -s 10.5.1.128/25 -j DROP", level: Fail, text: "table mangle: POSTROUTING"},
	{name: "raw", here: "iptables -t raw -A PREROUTING -d 10.5.1.128/25 ! -i cni0 -j DROP", level: Fail,
		text: `dropped in ip raw PREROUTING: iifname != "cni0" ip daddr 10.5.1.128/25 drop`, advice: "iptables -t raw -I PREROUTING"},
	{name: "Docker 28", here: "iptables -t raw -A PREROUTING -d 10.5.1.2 ! -i cni0 -j DROP", level: Fail, text: "table ip raw chain PREROUTING: ", advice: "docker.md"},
	{name: "Docker 28, legacy", here: "iptables-legacy -t raw -A PREROUTING -d 10.5.1.2 ! -i cni0 -j DROP", level: Fail, text: "iptables-legacy *raw: ", advice: "docker.md"},
	{name: "Docker 28, trusted link", level: OK,
		here: "iptables -t raw -A PREROUTING -d 10.5.1.2 -i overlay.1 -j ACCEPT; iptables -t raw -A PREROUTING -d 10.5.1.2 ! -i cni0 -j DROP"},
	{name: "Docker 28, other containers", here: "iptables -t raw -A PREROUTING -d 172.17.0.2 ! -i docker0 -j DROP", level: OK},
	{name: "forwarding off on the bridge", here: "sysctl -qw net.ipv4.conf.cni0.forwarding=0", level: Fail, text: "forwarding is off on cni0", advice: "sysctl -w net/ipv4/conf/cni0/forwarding=1"},
	{name: "forwarding off on the overlay's link", here: "sysctl -qw net/ipv4/conf/overlay.1/forwarding=0", level: Fail, text: "forwarding is off on overlay.1", advice: "sysctl -w net/ipv4/conf/overlay.1/forwarding=1"},
	{name: "no peer", noPeer: true, level: OK, text: "no other host answers"},
	{name: "no peer, policy drop", noPeer: true, here: "iptables -P FORWARD DROP", level: Warn, text: "ip filter FORWARD: policy drop"},
}

// TestContainersCutOff has doctor send what a container would, on a host with a bridge and on one without, and leave
// nothing of it.
func TestContainersCutOff(t *testing.T) {
	t.Parallel()
	for _, test := range cutOff {
		for _, bridge := range []bool{true, false} {
			if !bridge && strings.Contains(test.here+test.text, "cni0") {
				continue
			}
			t.Run(fmt.Sprintf("%s, bridge %t", test.name, bridge), func(t *testing.T) {
				t.Parallel()
				w, h := newWard(t), well(t)
				if bridge {
					w.sh(w.here, fmt.Sprintf(cni0, w.container()))
				}
				w.sh(w.here, test.here)
				if test.noPeer {
					h.Status.Peers = nil
				}
				before := w.dump()
				got := w.examine(h, find(t, "containers"))["containers"]
				if got.Level != test.level || !strings.Contains(got.Text, test.text) || !strings.Contains(got.Advice, test.advice) {
					t.Errorf("got %+v, want %s with %q and %q", got, test.level, test.text, test.advice)
				}
				if diff := cmp.Diff(before, w.dump()); diff != "" {
					t.Errorf("the host is not as it was (-before +after):\n%s", diff)
				}
			})
		}
	}
}

// TestContainersOfBothFamilies has IPv6 cut off alone.
func TestContainersOfBothFamilies(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		here, text string
		level      Level
	}{
		"well":        {"", "2 subnets", OK},
		"policy drop": {"ip6tables -P FORWARD DROP", "as fd00:5:0:2::/64: dropped in ip6 filter FORWARD: policy drop", Fail},
		"legacy":      {"ip6tables-legacy -A FORWARD -j DROP", "dropped by ip6tables-legacy, table filter: FORWARD -j DROP", Fail},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, h := newWard(t), well(t)
			for i, ns := range []string{w.here, w.there} {
				w.sh(ns, fmt.Sprintf(`sysctl -qw net.ipv6.conf.all.forwarding=1
					ip address add fd00:5:0:%[1]d::/128 dev overlay.1 nodad
					ip neighbour add fd00:5:0:%[2]d:: lladdr 02:00:00:00:00:0%[2]d nud permanent dev overlay.1
					ip route add fd00:5:0:%[2]d::/64 via fd00:5:0:%[2]d:: dev overlay.1 onlink proto 111`, i+1, 2-i))
			}
			w.sh(w.here, test.here)
			h.Status.Subnets = append(h.Status.Subnets, "fd00:5:0:1::/64")
			h.Status.Peers[0].Subnets = append(h.Status.Peers[0].Subnets, "fd00:5:0:2::/64")
			before := w.dump()
			got := w.examine(h, find(t, "containers"))["containers"]
			if got.Level != test.level || !strings.Contains(got.Text, test.text) {
				t.Errorf("got %+v, want %s with %q", got, test.level, test.text)
			}
			if diff := cmp.Diff(before, w.dump()); diff != "" {
				t.Errorf("the host is not as it was (-before +after):\n%s", diff)
			}
		})
	}
}

// TestContainersInterrupted stops doctor at every point of its trying: nothing is left.
func TestContainersInterrupted(t *testing.T) {
	t.Parallel()
	w, h := newWard(t), well(t)
	w.sh(w.here, fmt.Sprintf(cni0, w.container()))
	w.sh(w.here, "iptables -P FORWARD DROP")
	before := w.dump()
	for after := time.Duration(0); after < 3*time.Second; after += 200 * time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		w.examineWithin(ctx, h, find(t, "containers"))
		cancel()
		if diff := cmp.Diff(before, w.dump()); diff != "" {
			t.Fatalf("interrupted after %s, the host is not as it was (-before +after):\n%s", after, diff)
		}
	}
}

// container is a namespace with an address of the patient's subnet, and loopback.
func (w ward) container() string {
	w.t.Helper()
	name := w.here + "c"
	run(w.t, "ip", "netns", "add", name)
	w.t.Cleanup(func() { run(w.t, "ip", "netns", "delete", name) })
	return name
}

// dump is what the patient's kernel has been told, but for what comes and goes by itself, and the containers' neighbours.
func (w ward) dump() []string {
	w.t.Helper()
	out, err := exec.Command("ip", "netns", "exec", w.here, "sh", "-ec", `
		ip -br link | cut -c1-16; ip -4 -br address | cut -c1-16,32-; ip -d link show type bridge | grep -o 'link/ether [^ ]*' || true
		ip -4 route show table all | sed 's/ linkdown//'; ip -6 route show table all | grep -v -e fe80:: -e ff00:: || true
		ip neighbour | grep ^10.5.1 || true; nft --stateless list ruleset`).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
	return strings.Split(string(out), "\n")
}
