package bypass

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// host is one with all that overlayd may have.
var host = Ours{
	Bridges: []string{"cni0"}, Overlays: []string{"overlay.1"}, Underlay: "eth0",
	Tunnels:  []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:8472")},
	Networks: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd00:5::/48")},
}

// ourForward is what overlayd has in iptables' filter, as iptables-save prints it, for the network of IPv4.
const ourForward = `:OVERLAYD-FORWARD - [0:0]
-A FORWARD -m comment --comment overlayd -j OVERLAYD-FORWARD
-A OVERLAYD-FORWARD -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment overlayd -j ACCEPT
-A OVERLAYD-FORWARD -s 10.5.0.0/16 -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment overlayd -j ACCEPT
-A OVERLAYD-FORWARD -d 10.5.0.0/16 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment overlayd -j ACCEPT
-A OVERLAYD-FORWARD -s 10.5.0.0/16 -o eth0 -m comment --comment overlayd -j ACCEPT
`

// withOurs puts overlayd's rules where it puts them: first, but for DOCKER-USER.
func withOurs(save string) string {
	at := strings.Index(save, "\n-A FORWARD ")
	if user := "\n-A FORWARD -j DOCKER-USER"; strings.Contains(save, user) {
		at = strings.Index(save, user) + len(user)
	}
	if at < 0 {
		at = strings.LastIndex(save, "\nCOMMIT")
	}
	return save[:at+1] + ourForward + save[at+1:]
}

// judged is the first finding, "" if there is none.
func judged(o Ours, tables ...*table) string {
	for _, t := range tables {
		for _, f := range t.judge(o, func(name string) bool { return strings.HasPrefix(name, "oveth") }) {
			return f.why
		}
	}
	return ""
}

func listing(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestJudgeListings judges what runtimes and firewalls have made, as iptables-save and nft print it.
func TestJudgeListings(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		listing string
		bare    bool // without overlayd's rules
		edit    []string
		want    string // a part of it; "": free
	}{
		{listing: "docker-20.10.save"},
		{listing: "docker-20.10.save", edit: []string{":FORWARD ACCEPT", ":FORWARD DROP"}},
		{listing: "docker-20.10.save", edit: []string{":FORWARD ACCEPT", ":FORWARD DROP"}, bare: true, want: "iptables filter FORWARD: policy drop judges packets between containers"},
		{listing: "docker-20.10.save", edit: []string{"-A DOCKER-USER -j RETURN", "-A DOCKER-USER -s 10.5.1.7/32 -j DROP\n-A DOCKER-USER -j RETURN"},
			want: "iptables filter DOCKER-USER: '-s 10.5.1.7/32 -j DROP' judges packets between containers"},
		{listing: "docker-20.10.save", edit: []string{"-A DOCKER-USER -j RETURN", "-A DOCKER-USER -i eth0 -j DROP\n-A DOCKER-USER -j RETURN"}},
		{listing: "docker-20.10.save", edit: []string{"-A DOCKER-USER -j RETURN", "-A DOCKER-USER -m limit --limit 100/sec -j RETURN\n-A DOCKER-USER -j DROP"},
			want: "iptables filter DOCKER-USER: '-j DROP'"},
		{listing: "docker-20.10.save", edit: []string{"-A DOCKER-USER -j RETURN", "-A DOCKER-USER -s 10.5.0.0/16"}, want: "'-s 10.5.0.0/16' judges"},
		{listing: "docker-20.10.save", edit: []string{"docker0", "cni0"}}, // the lease is Docker's bridge
		{listing: "docker-28.save"},
		{listing: "docker-28.save", edit: []string{"172.17.0", "10.5.1", "docker0", "cni0"}, want: "iptables raw PREROUTING: '-d 10.5.1.2/32 ! -i cni0 -j DROP'"},
		{listing: "docker-28.save", bare: true, want: "policy drop"},
		{listing: "cni-portmap-firewall.save"},
		{listing: "cni-portmap-firewall.save", bare: true},
		{listing: "nerdctl.save"},
		{listing: "nerdctl.save", bare: true},
		{listing: "cni-same-bridge.save"},
		{listing: "cni-same-bridge.save", bare: true},
		{listing: "cni-same-bridge.save", bare: true, edit: []string{":CNI-ADMIN - [0:0]", ":CNI-ADMIN - [0:0]\n-A CNI-ADMIN -p tcp --dport 25 -j DROP"},
			want: "iptables filter CNI-ADMIN: '-p tcp --dport 25 -j DROP'"},
		{listing: "nomad.save"},
		{listing: "nomad.save", bare: true},
		{listing: "podman-netavark-1.4.save"},
		{listing: "podman-netavark-1.4.save", bare: true},
		{listing: "podman-netavark-1.12.nft"},
		{listing: "flannel.save"},
		{listing: "flannel.save", bare: true},
		{listing: "flannel.nft"},
		{listing: "kube-proxy.save"},
		{listing: "kube-proxy.save", bare: true},
		{listing: "libvirt.save", bare: true},
		{listing: "libvirt.save", edit: []string{"-o virbr0 -p udp", "-p udp"}, want: "iptables mangle LIBVIRT_PRT: '-p udp -m udp --dport 68 -j CHECKSUM --checksum-fill' judges packets between containers"},
		{listing: "fail2ban.save", bare: true},
		{listing: "fail2ban-allports.save", want: "iptables filter f2b-sshd: '-s 203.0.113.9/32 -j REJECT --reject-with icmp-port-unreachable' judges packets that come by the tunnel"},
		{listing: "fail2ban.nft"},
		{listing: "tailscale.save", want: "iptables filter ts-input: '-s 100.64.0.0/10 ! -i tailscale0 -j DROP' judges packets that come by the tunnel"},
		{listing: "ufw.save", want: "iptables filter ufw-after-logging-input: '-m limit --limit 3/min"},
		{listing: "ufw.save", bare: true, want: "iptables filter ufw-after-logging-forward: "},
		{listing: "ufw-8472-allowed.save"},
		{listing: "firewalld-public.nft", want: "nft inet firewalld filter_FWD_public: 'reject with icmpx admin-prohibited' judges packets between containers"},
		{listing: "firewalld-trusted.nft", want: "nft inet firewalld filter_PREROUTING: 'meta nfproto ipv6 fib saddr . mark . iif oif missing drop' judges packets between containers"},
		{listing: "firewalld-trusted.nft", edit: []string{"meta nfproto ipv6 fib saddr . mark . iif oif missing drop", ""}},
	} {
		name := test.listing
		if test.bare {
			name += " alone"
		}
		if test.edit != nil {
			name += " with " + test.edit[1]
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := strings.NewReplacer(append([]string{"\x00", "\x00"}, test.edit...)...).Replace(listing(t, test.listing))
			var tables []*table
			if strings.HasSuffix(test.listing, ".nft") {
				tables = []*table{parseNft(text)}
			} else {
				if !test.bare {
					text = withOurs(text)
				}
				tables = parseIptables("iptables", text)
			}
			why := judged(host, tables...)
			if test.want == "" && why != "" || test.want != "" && !strings.Contains(why, test.want) {
				t.Errorf("judged as %q, want %q", why, test.want)
			}
		})
	}
}
