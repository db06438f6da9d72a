package underlay

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

const permanent = unix.IFA_F_PERMANENT

func ips(list ...string) []netip.Addr {
	var ips []netip.Addr
	for _, s := range list {
		ips = append(ips, netip.MustParseAddr(s))
	}
	return ips
}

func addrs(flags int, list ...string) []hostAddr {
	var addrs []hostAddr
	for _, ip := range ips(list...) {
		addrs = append(addrs, hostAddr{ip: ip, bits: ip.BitLen() * 3 / 4, flags: flags})
	}
	return addrs
}

// single are addresses of no network.
func single(flags int, list ...string) []hostAddr {
	addrs := addrs(flags, list...)
	for i := range addrs {
		addrs[i].bits = addrs[i].ip.BitLen()
	}
	return addrs
}

// office is a host with two networks, a link that is down, and links of containers.
func office() host {
	return host{
		links: []hostLink{
			{name: "lo", index: 1, mtu: 65536, up: true, loopback: true, addrs: addrs(permanent, "127.0.0.1", "192.168.255.7", "::1")},
			{name: "eth0", index: 2, mtu: 1500, up: true, addrs: addrs(permanent, "10.0.0.5", "fe80::5", "2001:db8::5")},
			{name: "eth1", index: 3, mtu: 9000, up: true, addrs: addrs(permanent, "192.168.7.5", "fe80::6")},
			{name: "eth2", index: 4, mtu: 1500, addrs: addrs(permanent, "192.168.8.5")},
			{name: "docker0", index: 5, mtu: 1500, up: true, addrs: addrs(permanent, "172.17.0.1")},
			{name: "overlay.1", index: 6, mtu: 1450, up: true, addrs: addrs(permanent, "10.5.1.0")},
		},
		defaults: map[int][]int{unix.AF_INET: {5, 3, 2}, unix.AF_INET6: {2}},
	}
}

func TestChooseErrors(t *testing.T) {
	t.Parallel()
	const there = "; there are eth0 (10.0.0.5, fe80::5 link-local, 2001:db8::5), eth1 (192.168.7.5, fe80::6 link-local), eth2 (down)"
	for _, tt := range []struct {
		name string
		edit func(*host)
		s    Selector
		want string
	}{
		{"no family", nil, Selector{}, "find the underlay: neither IPv4 nor IPv6 is asked for"},
		{"no link of that name", nil, Selector{IPv4: true, Ifaces: []string{"eth9"}},
			"--iface eth9: no link has this name or address" + there},
		{"an address of loopback", nil, Selector{IPv4: true, Ifaces: []string{"127.0.0.1"}},
			"--iface 127.0.0.1: no link has this name or address" + there},
		{"an address on loopback, and no default route", func(h *host) { h.defaults = nil }, Selector{IPv4: true, Ifaces: []string{"192.168.255.7"}},
			"--iface 192.168.255.7: lo: no link has a default route" + there},
		{"loopback", nil, Selector{IPv4: true, Ifaces: []string{"lo"}},
			"--iface lo: lo: a loopback link reaches no peer" + there},
		{"down", nil, Selector{IPv4: true, Ifaces: []string{"eth2"}},
			"--iface eth2: eth2 is down: ip link set eth2 up" + there},
		{"none of them, all told", nil, Selector{IPv4: true, Ifaces: []string{"eth2", "ens3"}, Regexes: []string{"^wan"}},
			"--iface eth2: eth2 is down: ip link set eth2 up; --iface ens3: no link has this name or address; --iface-regex ^wan: matches no link" + there},
		{"link-local only", nil, Selector{IPv6: true, Ifaces: []string{"eth1"}},
			"--iface eth1: eth1 has no usable IPv6 address, it has 192.168.7.5, fe80::6 link-local" + there},
		{"no address", func(h *host) { h.links[1].addrs = nil }, Selector{IPv4: true, Ifaces: []string{"eth0"}},
			"--iface eth0: eth0 has no usable IPv4 address, it has none; there are eth0 (none), eth1 (192.168.7.5, fe80::6 link-local), eth2 (down)"},
		{"bad regex", nil, Selector{IPv4: true, Regexes: []string{"eth["}},
			"--iface-regex: error parsing regexp: missing closing ]: `[`"},
		{"a regex for our own links", nil, Selector{IPv4: true, Regexes: []string{"overlay|docker"}},
			"--iface-regex overlay|docker: matches no link" + there},
		{"unreachable", func(h *host) { h.reach.err = unix.ENETUNREACH }, Selector{IPv4: true, CanReach: ips("198.51.100.1")[0]},
			"--iface-can-reach 198.51.100.1: no route: network is unreachable" + there},
		{"reached by the overlay", func(h *host) { h.reach.link = 6 }, Selector{IPv4: true, CanReach: ips("10.5.2.1")[0]},
			"--iface-can-reach 10.5.2.1: the route is by loopback, or by an overlay's or a container's link" + there},
		{"reached by a link without the family", func(h *host) { h.reach.link = 3 }, Selector{IPv6: true, CanReach: ips("192.168.7.1")[0]},
			"--iface-can-reach 192.168.7.1: eth1 has no usable IPv6 address, it has 192.168.7.5, fe80::6 link-local"},
		{"a public IP on a link that is down", nil, Selector{IPv4: true, PublicIPs: ips("192.168.8.5")},
			"the public IP 192.168.8.5: eth2 is down: ip link set eth2 up"},
		{"no default route", func(h *host) { h.defaults = nil }, Selector{IPv6: true},
			"no IPv6 default route: name the link that carries the overlay with --iface" + there},
		{"a default route by a container's link only", func(h *host) { h.defaults[unix.AF_INET] = []int{5} }, Selector{IPv4: true},
			"no IPv4 default route: name the link that carries the overlay with --iface" + there},
		{"default routes by different links", func(h *host) { h.defaults[unix.AF_INET] = []int{3} }, Selector{IPv4: true, IPv6: true},
			"the default routes are by different links, IPv4 by eth1, IPv6 by eth0: name one that has both families with --iface" + there},
		{"the default route's link has no address", func(h *host) { h.defaults[unix.AF_INET6] = []int{3} }, Selector{IPv6: true},
			"the default route's link: eth1 has no usable IPv6 address, it has 192.168.7.5, fe80::6 link-local"},
		{"nothing at all", func(h *host) { *h = host{} }, Selector{IPv4: true},
			"no IPv4 default route: name the link that carries the overlay with --iface; there are none but loopback and container links"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := office()
			if tt.edit != nil {
				tt.edit(&h)
			}
			u, err := h.choose(tt.s)
			if err == nil {
				t.Fatalf("got %+v, want an error", u)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	eth0 := Choice{Link: "eth0", Index: 2, MTU: 1500, Addrs: ips("10.0.0.5"), PublicIPs: ips("10.0.0.5")}
	eth0dual := Choice{Link: "eth0", Index: 2, MTU: 1500, Addrs: ips("10.0.0.5", "2001:db8::5"), PublicIPs: ips("10.0.0.5", "2001:db8::5")}
	eth1 := Choice{Link: "eth1", Index: 3, MTU: 9000, Addrs: ips("192.168.7.5"), PublicIPs: ips("192.168.7.5")}
	public := func(u Choice, list ...string) Choice { u.PublicIPs = ips(list...); return u }
	for _, tt := range []struct {
		name string
		edit func(*host)
		s    Selector
		want Choice
	}{
		{"the preferred default route that is no container's", nil, Selector{IPv4: true}, eth1},
		{"the default route of both families", nil, Selector{IPv4: true, IPv6: true}, eth0dual},
		{"a default route whose address is in use", nil, Selector{IPv4: true, InUse: ips("10.0.0.5")}, eth0},
		{"an address in use, with no default route", nil, Selector{IPv4: true, InUse: ips("192.168.8.5")}, eth1},
		{"another is in use than the link's that is named", nil, Selector{IPv4: true, Ifaces: []string{"eth1"}, InUse: ips("10.0.0.5")}, eth1},
		{"one in use of those that a regex matches", func(h *host) { h.links[1].addrs = addrs(permanent, "10.0.0.4", "10.0.0.5") },
			Selector{IPv4: true, Regexes: []string{`^10\.`}, InUse: ips("10.0.0.5")}, eth0},
		{"by name", nil, Selector{IPv4: true, Ifaces: []string{"eth0"}}, eth0},
		{"by address", nil, Selector{IPv4: true, Ifaces: []string{"192.168.7.5"}}, eth1},
		{"by an address on loopback", nil, Selector{IPv4: true, Ifaces: []string{"192.168.255.7"}},
			Choice{Link: "lo", Unbound: true, Index: 1, MTU: 1500, Addrs: ips("192.168.255.7"), PublicIPs: ips("192.168.255.7")}},
		{"by an address of the other family", nil, Selector{IPv4: true, Ifaces: []string{"2001:db8::5"}}, eth0},
		{"the first usable", nil, Selector{IPv4: true, Ifaces: []string{"ens3", "eth2", "eth0", "eth1"}}, eth0},
		{"a name before a regex", nil, Selector{IPv4: true, Ifaces: []string{"eth0"}, Regexes: []string{"eth1"}}, eth0},
		{"a regex after names", nil, Selector{IPv4: true, Ifaces: []string{"ens3"}, Regexes: []string{"ens", "eth[12]"}}, eth1},
		{"a regex on addresses", nil, Selector{IPv4: true, Regexes: []string{`^192\.168\.`}}, eth1},
		{"our own link, if it is named", nil, Selector{IPv4: true, Ifaces: []string{"docker0"}},
			Choice{Link: "docker0", Index: 5, MTU: 1500, Addrs: ips("172.17.0.1"), PublicIPs: ips("172.17.0.1")}},
		{"a flag before can-reach", func(h *host) { h.reach.link = 3 },
			Selector{IPv4: true, Ifaces: []string{"eth0"}, CanReach: ips("192.168.7.1")[0]}, eth0},
		{"can-reach where no flag matches", func(h *host) { h.reach.link = 2 },
			Selector{IPv4: true, Ifaces: []string{"ens3"}, CanReach: ips("10.0.0.1")[0]}, eth0},
		{"the source address of the way there", func(h *host) {
			h.links[1].addrs = append(h.links[1].addrs, addrs(permanent, "10.0.0.6")...)
			h.reach = reach{link: 2, src: ips("10.0.0.6")[0]}
		}, Selector{IPv4: true, CanReach: ips("10.0.0.1")[0]},
			Choice{Link: "eth0", Index: 2, MTU: 1500, Addrs: ips("10.0.0.6"), PublicIPs: ips("10.0.0.6")}},
		{"a public IP behind NAT", nil, Selector{IPv4: true, PublicIPs: ips("203.0.113.9")}, public(eth1, "203.0.113.9")},
		{"a public IP that a link has", nil, Selector{IPv4: true, PublicIPs: ips("10.0.0.5")}, eth0},
		{"a public IP for one family", nil, Selector{IPv4: true, IPv6: true, Ifaces: []string{"eth0"}, PublicIPs: ips("2001:db8:9::9")},
			public(eth0dual, "10.0.0.5", "2001:db8:9::9")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := office()
			if tt.edit != nil {
				tt.edit(&h)
			}
			got, err := h.choose(tt.s)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAddressOrder(t *testing.T) {
	t.Parallel()
	const temporary, deprecated, tentative, duplicate = unix.IFA_F_TEMPORARY, unix.IFA_F_DEPRECATED, unix.IFA_F_TENTATIVE, unix.IFA_F_DADFAILED
	for _, tt := range []struct {
		name  string
		addrs []hostAddr
		first []netip.Addr
		want  string // "" is none
		inUse []netip.Addr
		from  []netip.Addr // what the kernel sends from
	}{
		{"none", nil, nil, "", nil, nil},
		{"only unfit ones", append(append(addrs(tentative|permanent, "2001:db8::1"), addrs(deprecated, "2001:db8::2")...),
			addrs(duplicate|tentative, "2001:db8::3")...), nil, "", nil, nil},
		{"the other family", addrs(permanent, "10.0.0.1"), nil, "", nil, nil},
		{"an unfit one asked for", append(addrs(tentative, "2001:db8::1"), addrs(0, "2001:db8::2")...), ips("2001:db8::1"), "2001:db8::2", nil, nil},
		{"global before link-local", append(addrs(permanent, "169.254.0.1"), addrs(0, "10.0.0.2")...), nil, "10.0.0.2", nil, nil},
		{"link-local, if it is all", addrs(permanent, "169.254.0.1"), nil, "169.254.0.1", nil, nil},
		{"permanent before dynamic", append(addrs(0, "2001:db8::1"), addrs(permanent, "2001:db8::2")...), nil, "2001:db8::2", nil, nil},
		{"lasting before temporary", append(addrs(temporary, "2001:db8::1"), addrs(0, "2001:db8::2")...), nil, "2001:db8::2", nil, nil},
		{"primary before secondary", append(addrs(temporary|permanent, "10.0.0.1"), addrs(permanent, "10.0.0.2")...), nil, "10.0.0.2", nil, nil},
		{"the kernel's order else", addrs(permanent, "10.0.0.9", "10.0.0.1"), nil, "10.0.0.9", nil, nil},
		{"what was asked for before all", append(addrs(permanent, "10.0.0.1"), addrs(temporary, "10.0.0.2")...), ips("10.0.0.2"), "10.0.0.2", nil, nil},
		{"one in use is deprecated", append(addrs(deprecated, "2001:db8::1"), addrs(0, "2001:db8::2")...), nil, "2001:db8::2", ips("2001:db8::1"), nil},
		{"one in use is a duplicate", append(addrs(duplicate|tentative, "2001:db8::1"), addrs(0, "2001:db8::2")...), nil, "2001:db8::2", ips("2001:db8::1"), nil},
		{"one in use is tentative again", append(addrs(tentative, "2001:db8::1"), addrs(0, "2001:db8::2")...), nil, "2001:db8::1", ips("2001:db8::1"), nil},
		{"one in use is gone", addrs(0, "10.0.0.1"), nil, "10.0.0.1", ips("10.0.0.9"), nil},
		{"what was asked for before what is in use", addrs(0, "10.0.0.1", "10.0.0.2"), ips("10.0.0.2"), "10.0.0.2", ips("10.0.0.1"), nil},
		{"what is in use before all else", append(addrs(permanent, "10.0.0.1"), single(temporary, "10.0.0.2")...), nil, "10.0.0.2", ips("10.0.0.2"), ips("10.0.0.1")},
		{"a network's before a single one", append(single(permanent, "10.0.0.1"), addrs(0, "10.0.0.2")...), nil, "10.0.0.2", nil, nil},
		{"what IPv4 sends from, single or not", append(single(permanent, "10.0.0.1"), addrs(0, "10.0.0.2")...), nil, "10.0.0.1", nil, ips("10.0.0.1")},
		{"not a single one, if IPv6 sends from the newest", append(single(permanent, "2001:db8::1"), addrs(0, "2001:db8::2")...), nil, "2001:db8::2", nil, ips("2001:db8::1")},
		{"a dynamic one that the kernel sends from", append(addrs(permanent, "10.0.0.1"), addrs(0, "10.0.0.2")...), nil, "10.0.0.2", nil, ips("10.0.0.2")},
		{"not a temporary one, if IPv6 sends from it", append(addrs(temporary, "2001:db8::1"), addrs(0, "2001:db8::2")...), nil, "2001:db8::2", nil, ips("2001:db8::1")},
		{"a single one, if it is all", single(0, "2001:db8::1"), nil, "2001:db8::1", nil, nil},
	} {
		f := Selector{IPv6: true}.families()[0]
		if tt.want != "" && !strings.Contains(tt.want, ":") {
			f = Selector{IPv4: true}.families()[0]
		}
		got, ok := hostLink{addrs: tt.addrs, sources: tt.from}.addr(f, tt.first, tt.inUse)
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("%s: got %v, want %q", tt.name, got, tt.want)
		}
	}
}

// TestFind reads a kernel. What is chosen from it is for the tests above.
func TestFind(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	nstest.Sh(t, ns, `sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
		for i in 0 1 2; do ip link add eth$i mtu 140$i type veth peer name peer$i; ip link set peer$i up; done
		ip link set lo up; ip link set eth0 up; ip link set eth1 up
		ip addr add 192.168.255.7/32 dev lo
		ip addr add 10.0.0.5/24 dev eth0; ip addr add 10.0.0.6/24 dev eth0; ip addr add 2001:db8::5/64 dev eth0
		ip addr add 10.0.1.5/24 dev eth1; ip addr add 2001:db8:1::5/64 preferred_lft 0 dev eth1
		ip addr add 2001:db8:1::6/64 dev eth1 valid_lft 900 preferred_lft 900
		ip addr add 10.0.2.5/24 dev eth2`)
	if _, err := Find(ns, Selector{IPv4: true}); err == nil || !strings.HasPrefix(err.Error(), "no IPv4 default route:") {
		t.Errorf("no default route: got %v", err)
	}
	nstest.Sh(t, ns, `ip route add default via 10.0.0.1 metric 200
		ip route add default via 10.0.1.1 metric 100
		ip route add default via 10.0.0.1 table 100
		ip route add blackhole default metric 50
		ip -6 route add default metric 300 nexthop via 2001:db8::1 nexthop via 2001:db8:1::1
		ip -6 route add unreachable default metric 50
		ip route add 198.51.100.0/24 via 10.0.0.1 src 10.0.0.6`)
	for _, tt := range []struct {
		name string
		s    Selector
		want string // link and addresses, or how the error begins
	}{
		{"the loopback's address", Selector{IPv4: true, CanReach: ips("192.168.255.7")[0]}, "--iface-can-reach 192.168.255.7: the route is by loopback"},
		{"down", Selector{IPv4: true, Ifaces: []string{"eth2"}}, "--iface eth2: eth2 is down"},
		{"blackhole", Selector{IPv6: true, CanReach: ips("2001:db8:ffff::1")[0]}, "--iface-can-reach 2001:db8:ffff::1: no route:"},
		{"IPv4", Selector{IPv4: true}, "eth1 10.0.1.5"},
		{"IPv6", Selector{IPv6: true}, "eth0 2001:db8::5"},
		{"both", Selector{IPv4: true, IPv6: true}, "eth1 10.0.1.5 2001:db8:1::6"},
		{"by address", Selector{IPv4: true, IPv6: true, Ifaces: []string{"10.0.0.6"}}, "eth0 10.0.0.6 2001:db8::5"},
		{"can reach", Selector{IPv4: true, CanReach: ips("198.51.100.1")[0]}, "eth0 10.0.0.6"},
	} {
		u, err := Find(ns, tt.s)
		got := u.Link
		for _, a := range u.Addrs {
			got += " " + a.String()
		}
		if err != nil {
			got = err.Error()[:min(len(tt.want), len(err.Error()))]
		}
		if got != tt.want {
			t.Errorf("%s: got %s, %v; want %s", tt.name, got, err, tt.want)
		}
		if err == nil && u.MTU != 1400+int(u.Link[3]-'0') {
			t.Errorf("%s: MTU %d", tt.name, u.MTU)
		}
	}
	nstest.Sh(t, ns, `ip link set eth2 up; ip link add docker0 type veth peer name peer3; ip link set docker0 up
		ip addr add 10.0.3.1/24 dev docker0; ip route add default via 10.0.3.2 metric 900`)
	for iface, want := range map[string]string{"eth0": "eth0 eth1", "eth2": "eth0 eth1 eth2", "192.168.255.7": "eth0 eth1"} {
		u, err := Find(ns, Selector{IPv4: true, Ifaces: []string{iface}})
		if got := strings.Join(u.Uplinks, " "); got != want || err != nil {
			t.Errorf("uplinks with %s: %s, %v; want %s", iface, got, err, want)
		}
	}
}

func TestFindBadNamespace(t *testing.T) {
	t.Parallel()
	if _, err := Find(1<<20, Selector{IPv4: true}); err == nil {
		t.Error("no error")
	}
}
