package underlay

import (
	"testing"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// Whatever addresses come to a host, it keeps the one that peers know it by. One that starts takes what the kernel sends
// from, and no address that comes and goes.
func TestAddressStays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, before, then string
		family             Selector
		want, fresh        string // the address in use, and the one that a new host takes after all that; "": any
	}{
		{"DHCP and a VIP", "ip address add 10.0.0.5/24 dev eth0 valid_lft 900 preferred_lft 900; ip route add default via 10.0.0.1",
			"ip address add 10.0.0.100/32 dev eth0; ip address add 10.0.0.101/24 dev eth0; ip address add 10.9.0.1/24 dev eth0",
			Selector{IPv4: true}, "10.0.0.5", "10.0.0.5"},
		{"DHCP and a permanent address of another network", "ip address add 10.9.0.1/24 dev eth0; ip address add 10.0.0.5/24 dev eth0 valid_lft 900 preferred_lft 900; ip route add default via 10.0.0.1",
			"", Selector{IPv4: true}, "10.0.0.5", "10.0.0.5"},
		{"the route says which", "ip address add 10.0.0.5/24 dev eth0; ip address add 10.9.0.1/32 dev eth0; ip route add default via 10.0.0.1 src 10.9.0.1",
			"ip address add 10.0.0.100/32 dev eth0", Selector{IPv4: true}, "10.9.0.1", "10.9.0.1"},
		{"IPv6 and a VIP", "ip address add 2001:db8::5/64 dev eth0 valid_lft 900 preferred_lft 900; ip route add default via fe80::1 dev eth0",
			"ip address add 2001:db8::100/128 dev eth0", Selector{IPv6: true}, "2001:db8::5", "2001:db8::5"},
		{"IPv6 and any second one", "ip address add 2001:db8::5/64 dev eth0; ip route add default via fe80::1 dev eth0",
			"ip address add 2001:db8::6/64 dev eth0", Selector{IPv6: true}, "2001:db8::5", ""},
		{"another default route", "ip address add 10.0.0.5/24 dev eth0; ip route add default via 10.0.0.1 metric 100",
			"ip address add 10.0.1.5/24 dev eth1; ip route add default via 10.0.1.1 metric 50", Selector{IPv4: true}, "10.0.0.5", "10.0.1.5"},
		{"another default route alone", "ip address add 10.0.0.5/24 dev eth0; ip route add default via 10.0.0.1",
			"ip address add 10.0.1.5/24 dev eth1; ip route replace default via 10.0.1.1", Selector{IPv4: true}, "10.0.1.5", "10.0.1.5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ns := nstest.New(t)
			nstest.Sh(t, ns, `sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
				for i in 0 1; do ip link add eth$i type veth peer name peer$i; ip link set peer$i up; ip link set eth$i up; done`)
			address := func(s Selector) string {
				u, err := Find(ns, s)
				if err != nil {
					t.Fatal(err)
				}
				return u.Addrs[0].String()
			}
			nstest.Sh(t, ns, tt.before)
			present := tt.family
			present.InUse = ips(address(tt.family))
			nstest.Sh(t, ns, tt.then)
			if got, fresh := address(present), address(tt.family); got != tt.want || fresh != tt.fresh && tt.fresh != "" {
				t.Errorf("chose %s, and %s on a new host; want %s and %s", got, fresh, tt.want, tt.fresh)
			}
		})
	}
}
