package bypass

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func cidr(t *testing.T, text string) *net.IPNet {
	t.Helper()
	if text == "" {
		return nil
	}
	_, n, err := net.ParseCIDR(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestJudgeRules judges rules of routing, as hosts have them.
func TestJudgeRules(t *testing.T) {
	t.Parallel()
	type rule struct {
		from, to, iif, oif string
		mark, table        int
		edit               func(*netlink.Rule)
	}
	for _, test := range []struct {
		name string
		rule
		want string
	}{
		{"every host's", rule{table: unix.RT_TABLE_MAIN}, ""},
		{"tailscale's last", rule{table: 52}, "ip rule 100: from all lookup 52 routes packets between containers"},
		{"tailscale's first", rule{mark: 0x80000, table: unix.RT_TABLE_MAIN}, ""},
		{"what is unreachable", rule{mark: 0x80000}, ""},
		{"wg-quick's", rule{mark: 0xca6c, table: 51820, edit: func(r *netlink.Rule) { r.Invert = true }}, "ip rule 100: not from all fwmark 0xca6c lookup 51820"},
		{"wg-quick's other", rule{table: unix.RT_TABLE_MAIN, edit: func(r *netlink.Rule) { r.SuppressPrefixlen = 0 }}, "ip rule 100: from all lookup 254"},
		{"a second uplink's", rule{from: "198.51.100.7/32", table: 100}, ""},
		{"the underlay's own", rule{from: "192.0.2.1/32", table: 100}, "packets that leave by the tunnel"},
		{"containers'", rule{from: "10.5.1.0/24", table: 100}, "packets between containers"},
		{"toward others", rule{to: "10.9.0.0/16", iif: "cni0", table: 100}, ""},
		{"a bridge's", rule{iif: "cni0", table: 100}, "ip rule 100: from all iif cni0 lookup 100"},
		{"another bridge's", rule{iif: "docker0", table: 100}, ""},
		{"this host's", rule{iif: "lo", table: 100}, "packets that leave by the tunnel"},
		{"a link's", rule{oif: "wg0", table: 100}, ""},
		{"of a protocol", rule{table: 100, edit: func(r *netlink.Rule) { r.IPProto = unix.IPPROTO_ICMP }}, ""},
		{"IPv6 alone", rule{table: 100, edit: func(r *netlink.Rule) { r.Family = unix.AF_INET6 }}, "between containers"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := *netlink.NewRule()
			r.Family, r.Priority, r.Table, r.Mark = unix.AF_INET, 100, test.table, uint32(test.mark)
			r.Src, r.Dst, r.IifName, r.OifName = cidr(t, test.from), cidr(t, test.to), test.iif, test.oif
			if test.edit != nil {
				test.edit(&r)
			}
			why := judgeRules([]netlink.Rule{r}, host, func(string) bool { return false })
			if (test.want == "") != (why == "") || !strings.Contains(why, test.want) {
				t.Errorf("judged as %q, want %q", why, test.want)
			}
		})
	}
}

// TestJudgePolicies judges policies of IPsec.
func TestJudgePolicies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, from, to string
		edit           func(*netlink.XfrmPolicy)
		want           string
	}{
		{"between hosts", "192.0.2.1/32", "192.0.2.2/32", nil, "ip xfrm policy src 192.0.2.1/32 dst 192.0.2.2/32 dir out takes packets that leave by the tunnel"},
		{"all", "0.0.0.0/0", "0.0.0.0/0", nil, "between containers"},
		{"all of IPv6", "::/0", "::/0", nil, "between containers"},
		{"another site", "10.9.0.0/16", "10.8.0.0/16", nil, ""},
		{"from containers to another site", "10.5.0.0/16", "10.8.0.0/16", nil, ""},
		{"a socket's", "0.0.0.0/0", "0.0.0.0/0", func(p *netlink.XfrmPolicy) { p.Dir = netlink.XFRM_SOCKET_OUT }, ""},
		{"a link's", "0.0.0.0/0", "0.0.0.0/0", func(p *netlink.XfrmPolicy) { p.Ifid = 7 }, ""},
		{"neighbours'", "::/0", "::/0", func(p *netlink.XfrmPolicy) { p.Proto = unix.IPPROTO_ICMPV6 }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := netlink.XfrmPolicy{Src: cidr(t, test.from), Dst: cidr(t, test.to), Dir: netlink.XFRM_DIR_OUT}
			if test.edit != nil {
				test.edit(&p)
			}
			why := judgePolicies([]netlink.XfrmPolicy{p}, host)
			if (test.want == "") != (why == "") || !strings.Contains(why, test.want) {
				t.Errorf("judged as %q, want %q", why, test.want)
			}
		})
	}
}

// TestJudgeIPVS reads /proc/net/ip_vs as kernels print it, also one with nothing in it.
func TestJudgeIPVS(t *testing.T) {
	t.Parallel()
	const head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
	for services, want := range map[string]string{
		"":   "",
		head: "",
		head + "TCP  0A60000A:0035 rr\n  -> 0A050107:0035      Masq    1      0          0\n": "IPVS has a service (TCP 0A60000A:0035)",
		head + "FWM  00000001 wlc persistent 360\n":                                           "IPVS has a service (FWM 00000001)",
	} {
		why := judgeIPVS(services)
		if (want == "") != (why == "") || !strings.Contains(why, want) {
			t.Errorf("%q is judged as %q, want %q", services, why, want)
		}
	}
}
