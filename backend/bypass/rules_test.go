package bypass

import (
	"net/netip"
	"strings"
	"testing"
)

// TestJudgeNft judges one rule each, in hook forward of a table of both families but where it says otherwise.
func TestJudgeNft(t *testing.T) {
	t.Parallel()
	const free = ""
	for _, test := range []struct{ rule, want string }{
		{"ct count over 20 drop", "nft inet fw c: 'ct count over 20 drop' judges packets between containers"},
		{"limit rate over 10/second drop", "drop"},
		{"limit rate 10/second accept", free}, // with policy accept it drops nothing
		{"ip saddr 10.5.1.2 drop", "drop"},
		{"ip saddr 10.0.0.0/8 ip daddr 10.0.0.0/8 counter drop", "drop"},
		{"ip saddr != 10.5.0.0/16 drop", free},
		{"ip saddr { 192.168.0.0/16, 10.5.9.0/24 } drop", "drop"},
		{"ip saddr { 192.168.0.0/16, 172.16.0.0/12 } drop", free},
		{"ip saddr @banned drop", "drop"},
		{"ip6 saddr fd00:6::/48 drop", free},
		{"ip6 saddr fd00:5::/64 drop", "drop"},
		{"ip saddr . tcp dport { 10.6.0.1 . 80 } drop", "drop"}, // not read
		{`ip saddr . iifname { 10.6.0.1 . "eth9" } drop`, "drop"},
		{`ip saddr . iifname 10.6.0.1 . "eth9" accept`, "accept"},
		{`iifname "cni0" oifname "overlay.1" drop`, "drop"},
		{`iifname "docker0" drop`, free},
		{`iifname != "docker0" drop`, "drop"},
		{`iifname { "docker0", "virbr0" } drop`, free},
		{`oifname "cni*" drop`, "drop"},
		{`oifname "wg*" drop`, free},
		{"meta l4proto icmp drop", free},
		{"meta l4proto != { tcp, udp } drop", free},
		{"meta l4proto { tcp, udp } th dport 53 drop", "drop"},
		{"icmp type echo-request limit rate over 1/second drop", free},
		{"tcp flags syn tcp option maxseg size set rt mtu", free},
		{"tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu", free},
		{"tcp flags & (fin | syn | rst | ack) == syn ct count over 9 drop", free},
		{"tcp flags & (fin | rst) != 0x0 drop", "drop"},
		{"tcp option maxseg size set rt mtu", "set rt mtu"},
		{"ct state invalid drop", free},
		{"ct state invalid,untracked drop", "drop"},
		{"ct state new limit rate over 10/second drop", "drop"}, // one that changes ways may seem new
		{"ct status dnat drop", free},
		{"ct state vmap { invalid : drop, established : accept, related : accept }", free},
		{"ct state vmap { established : accept, new : drop }", "drop"},
		{"ct state vmap @states", "vmap"},
		{"ct mark set 0x1 accept", "set 0x1"},
		{"meta mark set 0x1", "set 0x1"},
		{"meta mark & 0x00002000 == 0x00002000 drop", free},
		{"meta mark 0x00000000 drop", "drop"},
		{"counter", "counter"},
		{"counter accept", free},
		{"counter packets 5 bytes 6 accept", free},
		{"accept", free},
		{`comment "accept"`, free},
		{`log prefix "drop " accept`, "log"},
		{"notrack", "notrack"},
		{"queue to 0", "queue"},
		{"flow add @ft", "flow"},
		{"update @seen { ip saddr }", "update"},
		{"fib daddr type local drop", free},
		{"fib daddr type != local drop", "drop"},
		{"fib saddr . iif oif missing drop", "drop"},
		{"something of nft's to come", free},
		{"something of nft's to come drop", "drop"},
		{"jump other", free},
		{`meta nfproto ipv4 iifname . oifname vmap { "cni0" . "overlay.1" : drop }`, "drop"},
	} {
		t.Run(test.rule, func(t *testing.T) {
			t.Parallel()
			text := "table inet fw {\n\tchain c {\n\t\ttype filter hook forward priority filter; policy accept;\n\t\t" + test.rule + "\n\t}\n\n\tchain other {\n\t\treturn\n\t}\n}\n"
			why := judged(host, parseNft(text))
			if (test.want == "") != (why == "") || !strings.Contains(why, test.want) {
				t.Errorf("judged as %q, want %q", why, test.want)
			}
		})
	}
}

// TestJudgeChains judges what depends on more than one rule, and on where packets pass.
func TestJudgeChains(t *testing.T) {
	t.Parallel()
	direct := host
	direct.Direct = true
	untunnelled := direct
	untunnelled.Tunnels = nil
	for _, test := range []struct {
		name, table string
		ours        Ours
		want        string
	}{
		{"input drops all", "table inet fw {\n\tchain in {\n\t\ttype filter hook input priority 0; policy drop;\n\t}\n}", host,
			"nft inet fw in: policy drop judges packets that come by the tunnel"},
		{"input drops all, without a tunnel", "table inet fw {\n\tchain in {\n\t\ttype filter hook input priority 0; policy drop;\n\t}\n}", untunnelled, ""},
		{"the tunnel is let in", "table inet fw {\n\tchain in {\n\t\ttype filter hook input priority 0; policy drop;\n\t\tct state established,related accept\n\t\tiif \"lo\" accept\n\t\ttcp dport { 22, 80 } accept\n\t\tudp dport { 53, 8472 } accept\n\t}\n}", host, ""},
		{"from some the tunnel is let in", "table inet fw {\n\tchain in {\n\t\ttype filter hook input priority 0; policy drop;\n\t\tip saddr 192.0.2.0/24 udp dport 8472 accept\n\t}\n}", host, "policy drop"},
		{"the tunnel is let in as new", "table inet fw {\n\tchain in {\n\t\ttype filter hook input priority 0; policy drop;\n\t\tct state established,related accept\n\t\tudp dport 8472 ct state { new, untracked } accept\n\t}\n}", host, ""},
		{"output is counted", "table ip acct {\n\tchain out {\n\t\ttype filter hook output priority 0; policy accept;\n\t\tudp dport 8472 counter\n\t}\n}", host,
			"nft ip acct out: 'udp dport 8472 counter' judges packets that leave by the tunnel"},
		{"links, each by a chain", "table inet fw {\n\tchain f {\n\t\ttype filter hook forward priority 0; policy drop;\n\t\tiifname \"cni0\" goto a\n\t\tiifname \"overlay.1\" goto a\n\t\tdrop\n\t}\n\n\tchain a {\n\t\taccept\n\t}\n}", host, ""},
		{"a chain that returns", "table inet fw {\n\tchain f {\n\t\ttype filter hook forward priority 0; policy drop;\n\t\tiifname \"cni0\" goto a\n\t\taccept\n\t}\n\n\tchain a {\n\t}\n}", host, "policy drop"},
		{"what is direct comes by the underlay", "table inet fw {\n\tchain f {\n\t\ttype filter hook forward priority 0; policy accept;\n\t\tiifname \"eth0\" drop\n\t}\n}", direct, "between containers"},
		{"what is not, does not", "table inet fw {\n\tchain f {\n\t\ttype filter hook forward priority 0; policy accept;\n\t\tiifname \"eth0\" drop\n\t}\n}", host, ""},
		{"another family", "table ip6 fw {\n\tchain f {\n\t\ttype filter hook input priority 0; policy drop;\n\t}\n}", host, ""},
		{"a bridge's", "table bridge fw {\n\tchain f {\n\t\ttype filter hook prerouting priority 0; policy accept;\n\t\tip saddr 10.5.0.0/16 counter drop\n\t}\n}", host, "nft bridge fw f"},
		{"a bridge's forwarding is no way of ours", "table bridge fw {\n\tchain f {\n\t\ttype filter hook forward priority 0; policy drop;\n\t}\n}", host, ""},
		{"the underlay's ingress", "table netdev fw {\n\tchain f {\n\t\ttype filter hook ingress device \"eth0\" priority 0; policy accept;\n\t\tudp dport 8472 counter\n\t}\n}", host, "come by the tunnel"},
		{"the underlay's ingress, of others", "table netdev fw {\n\tchain f {\n\t\ttype filter hook ingress devices = { \"eth0\", \"eth1\" } priority 0; policy accept;\n\t\ttcp dport 80 drop\n\t}\n}", host, ""},
		{"another link's ingress", "table netdev fw {\n\tchain f {\n\t\ttype filter hook ingress device \"eth1\" priority 0; policy drop;\n\t}\n}", host, ""},
		{"the underlay's egress is passed in any case", "table netdev fw {\n\tchain f {\n\t\ttype filter hook egress device \"eth0\" priority 0; policy drop;\n\t}\n}", host, ""},
		{"translation", "table ip nat {\n\tchain f {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t\tmasquerade\n\t}\n}", host, ""},
		{"chains that nothing leads to", "table inet fw {\n\tchain f {\n\t\tdrop\n\t}\n}", host, ""},
		{"chains of chains without end", "table inet fw {\n\tchain f {\n\t\ttype filter hook forward priority 0; policy accept;\n" + deep() + "}", host, "too many"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			why := judged(test.ours, parseNft(test.table))
			if (test.want == "") != (why == "") || !strings.Contains(why, test.want) {
				t.Errorf("judged as %q, want %q", why, test.want)
			}
		})
	}
}

// deep is chains each of which leads to the next ten times.
func deep() (text string) {
	for _, next := range "ABCDEFGH" {
		text += strings.Repeat("\t\tjump "+string(next)+"\n", 10) + "\t}\n\n\tchain " + string(next) + " {\n"
	}
	return text + "\t}\n"
}

// TestFindingOfOneLink looks at whose link a chain of a link's hook is about.
func TestFindingOfOneLink(t *testing.T) {
	t.Parallel()
	tab := parseNft("table netdev fw {\n\tchain f {\n\t\ttype filter hook ingress devices = { \"oveth7\", \"eth9\" } priority 0; policy drop;\n\t}\n}")
	found := tab.judge(host, func(name string) bool { return name == "oveth7" })
	if len(found) == 0 {
		t.Fatal("nothing was found")
	}
	for _, f := range found {
		if len(f.links) != 1 || f.links[0] != "oveth7" {
			t.Errorf("%q is about %q, want oveth7 alone", f.why, f.links)
		}
	}
}

// TestJudgeIptables judges one rule each, in chain FORWARD of mangle.
func TestJudgeIptables(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ rule, want string }{
		{"-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu", ""},
		{"-p tcp -m tcp --tcp-flags FIN,SYN FIN -j DROP", "DROP"},
		{"-p tcp -j TCPMSS --set-mss 1200", "TCPMSS"},
		{"-j MARK --set-xmark 0x1/0xffffffff", "MARK"},
		{"-i wg+ -j MARK --set-xmark 0x1/0xffffffff", ""},
		{"-i cni+ -j MARK --set-xmark 0x1/0xffffffff", "MARK"},
		{"! -i docker0 -j DROP", "DROP"},
		{"-m connbytes --connbytes 1000: --connbytes-dir both --connbytes-mode bytes -j DROP", "DROP"},
		{"-m recent --set --name x -j ACCEPT", "recent"},
		{"-m comment --comment \"-j DROP \\\" it\" -j ACCEPT", ""},
		{"-f -j DROP", ""},
		{"-p icmp -j DROP", ""},
		{"-p udp -m udp --dport 53 -j DROP", "DROP"},
		{"-d 10.5.0.0/255.255.0.255 -j DROP", "DROP"},
		{"! -d 10.5.0.0/16 -j DROP", ""},
		{"-m conntrack --ctstate NEW -j NFQUEUE --queue-num 0", "NFQUEUE"},
		{"-m conntrack --ctstate INVALID -j DROP", ""},
		{"-m physdev --physdev-is-bridged -j DROP", "DROP"},
	} {
		t.Run(test.rule, func(t *testing.T) {
			t.Parallel()
			why := judged(host, parseIptables("iptables", "*mangle\n:FORWARD ACCEPT [0:0]\n[5:400] -A FORWARD "+test.rule+"\nCOMMIT\n")...)
			if (test.want == "") != (why == "") || !strings.Contains(why, test.want) {
				t.Errorf("judged as %q, want %q", why, test.want)
			}
		})
	}
}

func TestRange(t *testing.T) {
	t.Parallel()
	if f := within([]netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}, []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")}); f != maybe {
		t.Errorf("a part of a network is met: %v", f)
	}
}
