package kernel

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAcceptObject(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ network, want string }{
		{"10.5.0.0/16", `iptables -A OVERLAYD-FORWARD -s 10.5.0.0/16 -m comment --comment overlayd -j ACCEPT
iptables -A OVERLAYD-FORWARD -d 10.5.0.0/16 -m comment --comment overlayd -j ACCEPT`},
		{"fd00:5::/48", `ip6tables -A OVERLAYD-FORWARD -s fd00:5::/48 -m comment --comment overlayd -j ACCEPT
ip6tables -A OVERLAYD-FORWARD -d fd00:5::/48 -m comment --comment overlayd -j ACCEPT`},
	} {
		a := Accept{netip.MustParsePrefix(tt.network)}
		if diff := cmp.Diff(tt.want, a.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.network, diff)
		}
		if m := Masquerade(a); a.Key() == m.Key() || a.Kind() != KindFirewall {
			t.Errorf("%s: key %v as of masquerading, or kind %v", tt.network, a.Key(), a.Kind())
		}
	}
}

func TestPlanForward(t *testing.T) {
	t.Parallel()
	const (
		chain = "-N OVERLAYD-FORWARD\n"
		jump  = "-A FORWARD -m comment --comment overlayd -j OVERLAYD-FORWARD\n"
		right = `-A OVERLAYD-FORWARD -s 10.5.0.0/16 -m comment --comment overlayd -j ACCEPT
-A OVERLAYD-FORWARD -d 10.5.0.0/16 -m comment --comment overlayd -j ACCEPT
`
		begin  = "*filter\n:OVERLAYD-FORWARD - [0:0]\n"
		unjump = "-D FORWARD -m comment --comment overlayd -j OVERLAYD-FORWARD\n"
		first  = "-I FORWARD 1 -m comment --comment overlayd -j OVERLAYD-FORWARD\nCOMMIT\n"
		second = "-I FORWARD 2 -m comment --comment overlayd -j OVERLAYD-FORWARD\nCOMMIT\n"
		third  = "-I FORWARD 3 -m comment --comment overlayd -j OVERLAYD-FORWARD\nCOMMIT\n"
		docker = "-A FORWARD -j DOCKER-FORWARD\n"
		user   = "-A FORWARD -j DOCKER-USER\n"
	)
	network := []string{"10.5.0.0/16"}
	for _, tt := range []struct {
		name, now string
		networks  []string
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
		{"right, with host bits in the network", chain + jump + right, []string{"10.5.1.2/16"}, ""},
		{"right, printed with quotes", strings.ReplaceAll(chain+jump+right, "--comment overlayd", `--comment "overlayd"`), network, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var networks []netip.Prefix
			for _, n := range tt.networks {
				networks = append(networks, netip.MustParsePrefix(n))
			}
			got := planForward(strings.Split(strings.TrimSpace(tt.now), "\n"), networks)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
