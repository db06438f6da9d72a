package firewall

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestForwardRules(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		rule Rule
		want string
	}{
		{Accept{net4}, `iptables -A OVERLAYD-FORWARD -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment overlayd -j ACCEPT
iptables -A OVERLAYD-FORWARD -s 10.5.0.0/16 -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment overlayd -j ACCEPT
iptables -A OVERLAYD-FORWARD -d 10.5.0.0/16 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment overlayd -j ACCEPT
iptables -A OVERLAYD-FORWARD -s 10.5.0.0/16 -d 224.0.0.0/4 -m comment --comment overlayd -j ACCEPT`},
		{Uplink{Network: netip.MustParsePrefix("fd00:5::7/48"), Link: "eth0"},
			`ip6tables -A OVERLAYD-FORWARD -s fd00:5::/48 -o eth0 -m comment --comment overlayd -j ACCEPT`},
		{Uplink{net4, "eth0", true}, `iptables -A OVERLAYD-FORWARD -s 10.5.0.0/16 -o eth0 -m comment --comment overlayd -j ACCEPT
iptables -A OVERLAYD-FORWARD -d 10.5.0.0/16 -i eth0 -m comment --comment overlayd -j ACCEPT`},
	} {
		if diff := cmp.Diff(tt.want, tt.rule.String()); diff != "" {
			t.Errorf("%#v (-want +got):\n%s", tt.rule, diff)
		}
	}
}

func TestPlanForward(t *testing.T) {
	t.Parallel()
	const (
		chain = "-N OVERLAYD-FORWARD\n"
		jump  = "-A FORWARD -m comment --comment overlayd -j OVERLAYD-FORWARD\n"
		right = `-A OVERLAYD-FORWARD -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment overlayd -j ACCEPT
-A OVERLAYD-FORWARD -s 10.5.0.0/16 -o eth0 -m comment --comment overlayd -j ACCEPT
`
		begin  = "*filter\n:OVERLAYD-FORWARD - [0:0]\n"
		unjump = "-D FORWARD -m comment --comment overlayd -j OVERLAYD-FORWARD\n"
		first  = "-I FORWARD 1 -m comment --comment overlayd -j OVERLAYD-FORWARD\nCOMMIT\n"
		second = "-I FORWARD 2 -m comment --comment overlayd -j OVERLAYD-FORWARD\nCOMMIT\n"
		third  = "-I FORWARD 3 -m comment --comment overlayd -j OVERLAYD-FORWARD\nCOMMIT\n"
		docker = "-A FORWARD -j DOCKER-FORWARD\n"
		user   = "-A FORWARD -j DOCKER-USER\n"
	)
	network := strings.Split(strings.TrimSpace(right), "\n")
	for _, tt := range []struct {
		name, now string
		chain     []string
		want      string
	}{
		{"nothing there", "-P FORWARD DROP\n", network, begin + right + first},
		{"flushed by iptables -F", chain, network, begin + right + first},
		{"the chain emptied", chain + jump, network, begin + unjump + right + first},
		{"jumped to twice", chain + jump + jump + right, network, begin + unjump + unjump + right + first},
		{"a jump of another form", chain + "-A FORWARD -i eth0 -j OVERLAYD-FORWARD\n" + right, network,
			begin + "-D FORWARD -i eth0 -j OVERLAYD-FORWARD\n" + right + first},
		{"Docker came before us", chain + user + docker + jump + right, network, begin + unjump + right + second},
		{"before DOCKER-USER", chain + jump + user + docker + right, network, begin + unjump + right + second},
		{"behind a rule of others", chain + docker + jump + right, network, begin + unjump + right + first},
		{"DOCKER-USER behind rules of others", chain + "-A FORWARD -j ts-forward\n" + jump + user + docker + right, network,
			begin + unjump + right + third},
		{"right behind that", chain + "-A FORWARD -j ts-forward\n" + user + jump + docker + right, network, ""},
		{"a rule of others in the chain", chain + jump + "-A OVERLAYD-FORWARD -j RETURN\n" + right, network,
			begin + unjump + right + first},
		{"another network before", chain + jump + strings.ReplaceAll(right, "10.5", "10.6"), network, begin + unjump + right + first},
		{"left by an earlier run", chain + docker + jump + right, nil, begin + unjump + "-X OVERLAYD-FORWARD\nCOMMIT\n"},
		{"an empty chain left", chain, nil, begin + "-X OVERLAYD-FORWARD\nCOMMIT\n"},
		{"nothing wanted, nothing there", "-P FORWARD DROP\n" + docker, nil, ""},
		{"right", chain + jump + docker + right, network, ""},
		{"right behind DOCKER-USER", chain + user + jump + docker + right, network, ""},
		{"right, printed with quotes", strings.ReplaceAll(chain+jump+right, "--comment overlayd", `--comment "overlayd"`), network, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := planForward(strings.Split(strings.TrimSpace(tt.now), "\n"), tt.chain)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
