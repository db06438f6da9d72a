package bypass

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// site is a host with a bridge, an overlay link and a container.
const site = nstest.LAN + `
ip link add cni0 type bridge
ip link set cni0 up
ip link add overlay.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning
ip link set overlay.1 up
ip link add oveth0 type veth peer name inside
ip link set oveth0 master cni0 up
`

// watched is a watcher at work in a namespace of its own.
type watched struct {
	*Watcher
	t         testing.TB
	ns        netns.NsHandle
	container int
}

func watch(t testing.TB, audit time.Duration) watched {
	t.Helper()
	ns := nstest.New(t)
	nstest.Sh(t, ns, site)
	w, err := New(Config{Namespace: ns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w.every = audit
	nstest.Run(t, w.Run)
	on := watched{w, t, ns, indexOf(t, ns, "oveth0")}
	o := host
	o.Containers = []int{on.container}
	w.Watch(o)
	return on
}

func indexOf(t testing.TB, ns netns.NsHandle, name string) int {
	t.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

// wait waits until the report is as wanted: of the host, or else of the container's link, a part of what it says.
func (w watched) wait(host, container string) {
	w.t.Helper()
	fits := func(why, want string) bool { return (want == "") == (why == "") && strings.Contains(why, want) }
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		r := w.Report()
		if fits(r.Host, host) && fits(r.Links[w.container], container) {
			return
		}
		if time.Since(begin) > 10*time.Second {
			w.t.Fatalf("host: %q, want %q; container: %q, want %q", r.Host, host, r.Links[w.container], container)
		}
	}
}

// TestNoticed puts in what would be passed by, of each kind, and takes it out.
func TestNoticed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, in, out string
		host, link    string
		audit         bool // the kernel tells nobody
	}{
		{name: "nft", in: "nft add table inet fw; nft add chain inet fw f '{ type filter hook forward priority 0; }'; nft add rule inet fw f ct count over 20 drop",
			out: "nft delete table inet fw", host: "nft inet fw f: 'ct count over 20 drop' judges packets between containers"},
		{name: "a rule in a chain that is there", in: "nft add table inet fw; nft add chain inet fw f '{ type filter hook forward priority 0; }'; sleep 2; nft add rule inet fw f drop",
			out: "nft flush chain inet fw f", host: "nft inet fw f: 'drop'"},
		{name: "nft's policy", in: "nft add table inet fw; nft add chain inet fw i '{ type filter hook input priority 0; policy drop; }'",
			out: "nft delete table inet fw", host: "nft inet fw i: policy drop judges packets that come by the tunnel"},
		{name: "nft of bridges", in: "nft add table bridge fw; nft add chain bridge fw f '{ type filter hook prerouting priority 0; }'; nft add rule bridge fw f counter",
			out: "nft delete table bridge fw", host: "nft bridge fw f: 'counter'"},
		{name: "nft on the underlay", in: "nft add table netdev fw; nft add chain netdev fw f '{ type filter hook ingress device eth0 priority 0; }'; nft add rule netdev fw f udp dport 8472 counter",
			out: "nft delete table netdev fw", host: "nft netdev fw f: 'udp dport 8472 counter'"},
		{name: "nft on a container's link", in: "nft add table netdev fw; nft add chain netdev fw f '{ type filter hook ingress device oveth0 priority 0; }'; nft add rule netdev fw f counter",
			out: "nft delete table netdev fw", link: "nft netdev fw f: 'counter'"},
		{name: "iptables", in: "iptables-nft -A FORWARD -s 10.5.1.2 -j DROP", out: "iptables-nft -F", host: "iptables filter FORWARD: '-s 10.5.1.2/32 -j DROP'"},
		{name: "ip6tables", in: "ip6tables-nft -A FORWARD -m limit --limit 9/sec -j RETURN; ip6tables-nft -P FORWARD DROP", out: "ip6tables-nft -P FORWARD ACCEPT",
			host: "ip6tables filter FORWARD: policy drop"},
		{name: "iptables, table raw", in: "iptables-nft -t raw -A PREROUTING -p udp --dport 8472 -j NOTRACK", out: "iptables-nft -t raw -F",
			host: "iptables raw PREROUTING: '-p udp -m udp --dport 8472 -j NOTRACK' judges"},
		{name: "iptables, table mangle", in: "iptables-nft -t mangle -A POSTROUTING -o overlay.1 -j TTL --ttl-set 9", out: "iptables-nft -t mangle -F",
			host: "iptables mangle POSTROUTING: '-o overlay.1 -j TTL --ttl-set 9'"},
		{name: "a name that is nobody's", in: "nft add table ip filter; nft add chain ip filter f '{ type filter hook forward priority 0; }'; nft add rule ip filter f ip saddr 10.5.0.0/16 drop",
			out: "nft delete table ip filter", host: "filter f: 'ip saddr 10.5.0.0/16 drop'"},
		{name: "legacy iptables", in: "iptables-legacy -A FORWARD -s 10.5.1.2 -j DROP", out: "iptables-legacy -F", audit: true,
			host: "iptables filter (legacy) FORWARD: '-s 10.5.1.2/32 -j DROP'"},
		{name: "IPsec", in: "ip xfrm policy add src 192.0.2.1 dst 192.0.2.9 dir out tmpl proto esp mode transport", out: "ip xfrm policy flush",
			host: "ip xfrm policy src 192.0.2.1/32 dst 192.0.2.9/32 dir out takes packets that leave by the tunnel"},
		{name: "rules of routing", in: "ip rule add to 10.5.7.0/24 lookup 99 priority 5", out: "ip rule del priority 5",
			host: "ip rule 5: from all to 10.5.7.0/24 lookup 99 routes packets between containers"},
		{name: "rules of routing, IPv6", in: "ip -6 rule add from fd00:5::/48 lookup 99 priority 5", out: "ip -6 rule del priority 5",
			host: "ip rule 5: from fd00:5::/48 lookup 99"},
		{name: "a shaper", in: "tc qdisc add dev oveth0 root tbf rate 10mbit burst 10k latency 50ms", out: "tc qdisc del dev oveth0 root",
			link: "qdisc tbf on oveth0 shapes what it sends"},
		{name: "a filter", in: "tc qdisc add dev oveth0 ingress; tc filter add dev oveth0 parent ffff: protocol ip u32 match ip dport 80 0xffff classid :1", out: "tc qdisc del dev oveth0 ingress",
			link: "filter u32 on oveth0 sees what comes by it"},
		{name: "a filter of clsact", in: "tc qdisc add dev oveth0 clsact; tc filter add dev oveth0 egress protocol ip u32 match ip dport 80 0xffff classid :1", out: "tc filter del dev oveth0 egress",
			link: "filter u32 on oveth0 sees what it sends"},
		{name: "a filter on the underlay", in: "tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress protocol ip u32 match ip dport 80 0xffff classid :1", out: "tc qdisc del dev eth0 clsact",
			host: "filter u32 on eth0 sees what comes by it"},
		{name: "a shaper of the bridge", in: "tc qdisc add dev cni0 root tbf rate 10mbit burst 10k latency 50ms", out: "tc qdisc del dev cni0 root", host: "qdisc tbf on cni0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			audit := time.Hour
			if test.audit {
				audit = 200 * time.Millisecond
			}
			w := watch(t, audit)
			w.wait("", "")
			nstest.Sh(t, w.ns, test.in)
			w.wait(test.host, test.link)
			nstest.Sh(t, w.ns, test.out)
			w.wait("", "")
		})
	}
}

// TestNoAccount puts in what is of no account beside what is, which shows that it was looked at.
func TestNoAccount(t *testing.T) {
	t.Parallel()
	w := watch(t, time.Hour)
	w.wait("", "")
	nstest.Sh(t, w.ns, `
		iptables-nft -A FORWARD -i docker0 -j DROP
		nft add table inet fw; nft add chain inet fw f '{ type filter hook input priority 0; }'; nft add rule inet fw f tcp dport 22 drop
		nft add table inet overlayd_policy; nft add chain inet overlayd_policy f '{ type filter hook forward priority 0; policy drop; }'
		ip rule add from 198.51.100.7 lookup 99 priority 5
		ip rule add fwmark 7 lookup 99 priority 6
		ip rule add iif docker0 lookup 99 priority 7
		ip xfrm policy add src 198.51.100.0/24 dst 203.0.113.0/24 dir out tmpl proto esp mode tunnel
		tc qdisc add dev oveth0 clsact
		tc qdisc add dev eth0 root handle 1: htb default 1
		nft add rule inet fw f udp dport 8472 drop`)
	w.wait("nft inet fw f: 'udp dport 8472 drop'", "")
	nstest.Sh(t, w.ns, "nft delete table inet fw")
	w.wait("", "")
}

// TestForeignProgram attaches a program to the container's link.
func TestForeignProgram(t *testing.T) {
	t.Parallel()
	w := watch(t, 200*time.Millisecond)
	w.wait("", "")
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, License: "GPL"})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	attach := func(index int) (l link.Link) {
		err := rtnl.InNetns(w.ns, func() (err error) {
			l, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: program, Attach: ebpf.AttachTCXEgress})
			return err
		})
		if errors.Is(err, ebpf.ErrNotSupported) {
			t.Skip("needs tcx, of Linux 6.6")
		} else if err != nil {
			t.Fatal(err)
		}
		return l
	}
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	on := attach(w.container)
	w.wait("", fmt.Sprintf("tc program %d on oveth0 sees what it sends", id))
	o := host
	o.Containers, o.Programs = []int{w.container}, []uint32{uint32(id)}
	w.Watch(o)
	w.wait("", "") // it is ours
	o.Programs = nil
	w.Watch(o)
	w.wait("", "tc program")
	on.Close()
	w.wait("", "")
	attach(indexOf(t, w.ns, "eth0")).Close()
	defer attach(indexOf(t, w.ns, "cni0")).Close()
	w.wait(fmt.Sprintf("tc program %d on cni0 sees what it sends", id), "")
}

// TestOwnRules has all that overlayd itself makes of rules.
func TestOwnRules(t *testing.T) {
	t.Parallel()
	w := watch(t, time.Hour)
	f, err := firewall.New(firewall.Config{Namespace: w.ns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w.wait("", "")
	if w.Report().Tracked {
		t.Error("connections are tracked where nothing is")
	}
	nstest.Run(t, f.Run)
	nstest.Sh(t, w.ns, "iptables -P FORWARD DROP")
	f.Set("a", []firewall.Rule{
		firewall.Masquerade{Network: host.Networks[0]}, firewall.Accept{Network: host.Networks[0]}, firewall.Accept{Network: host.Networks[1]},
		firewall.Guard{Tunnel: true, Overlay: true, Containers: true, Ranges: [2]firewall.Range{{Network: host.Networks[0], Local: "10.5.1.0/24"}}, Uplinks: `"eth0"`},
	})
	<-f.Applied()
	for !w.Report().Tracked {
		time.Sleep(10 * time.Millisecond)
	}
	w.wait("", "")
	nstest.Sh(t, w.ns, "iptables -t mangle -I FORWARD -s 10.5.0.0/16 -j DROP")
	w.wait("'-s 10.5.0.0/16 -j DROP'", "")
}
