package underlay

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// What is around a host is told apart from what it has for its containers.
func TestLookAround(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	nstest.Sh(t, ns, `
ip link set lo up; ip address add 10.9.9.9/32 dev lo
ip link add wire type ifb; ip link set wire up; ip address add 192.0.2.2/25 dev wire; ip address add fd00:9::2/64 dev wire nodad
ip link add tun0 type ifb; ip link set tun0 up; ip address add 198.51.100.1 peer 198.51.100.2 dev tun0
ip link add cni0 type bridge; ip link set cni0 up; ip address add 10.5.1.1/24 dev cni0
ip link add veth1 type veth peer name c1; ip link set veth1 master cni0 up
ip link add br0 type bridge; ip link set br0 up; ip address add 10.6.1.1/24 dev br0
ip link add port type ifb; ip link set port master br0 up
ip link add overlay.1 type vxlan id 1 dstport 8472 dev wire; ip link set overlay.1 up; ip address add 10.5.1.0/32 dev overlay.1
ip route add default via 192.0.2.1; ip route add default metric 9 nexthop via 192.0.2.3 dev wire nexthop via inet6 fd00:9::4 dev wire
ip route add default via fd00:9::1`)
	got, err := LookAround(ns)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"10.5.1.0/24 cni0 true", "10.5.1.0/32 overlay.1 true", "10.6.1.0/24 br0 false", "192.0.2.0/25 wire false",
		"198.51.100.1/32 tun0 false", "198.51.100.2/32 tun0 false", "fd00:9::/64 wire false",
	}
	var all []string
	for _, c := range got.Connected {
		all = append(all, fmt.Sprint(c.Prefix, " ", c.Link, " ", c.Containers))
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("connected (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("[192.0.2.1 192.0.2.3 fd00:9::4 fd00:9::1]", fmt.Sprint(got.Gateways)); diff != "" {
		t.Errorf("gateways (-want +got):\n%s", diff)
	}
}
