package fastpath

import (
	"fmt"
	"testing"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// flannel makes the host's vxlan links anew as flanneld does: outer checksums are on, and nothing takes a packet over IPv6
// without one.
func (s *site) flannel(t testing.TB) {
	t.Helper()
	i, j := s.number, 3-s.number
	nstest.Sh(t, s.ns, fmt.Sprintf(`
ip link del overlay.1
ip link del overlay6.1
ip link add flannel.1 address 02:00:00:01:00:0%[1]d type vxlan id 1 local 192.0.2.%[1]d dev eth0 dstport 8472 nolearning
ip link add flannel-v6.1 address 02:00:00:01:00:0%[1]d type vxlan id 1 local 2001:db8::%[1]d dev eth0 dstport 8472 nolearning
ip link set flannel.1 mtu 1430 up
ip link set flannel-v6.1 mtu 1430 up
ip address add 10.1.%[1]d.0/32 dev flannel.1
ip address add fd00:0:0:%[1]d::/128 dev flannel-v6.1 nodad
bridge fdb replace 02:00:00:01:00:0%[2]d dev flannel.1 dst 192.0.2.%[2]d self
bridge fdb replace 02:00:00:01:00:0%[2]d dev flannel-v6.1 dst 2001:db8::%[2]d self
ip neigh replace 10.1.%[2]d.0 lladdr 02:00:00:01:00:0%[2]d dev flannel.1 nud permanent
ip neigh replace fd00:0:0:%[2]d:: lladdr 02:00:00:01:00:0%[2]d dev flannel-v6.1 nud permanent
ip route replace 10.1.%[2]d.0/24 via 10.1.%[2]d.0 dev flannel.1 onlink
ip route replace fd00:0:0:%[2]d::/64 via fd00:0:0:%[2]d:: dev flannel-v6.1 onlink`, i, j))
}

// wires are what a link between hosts can do for its packets.
var wires = map[string]string{
	"all offloads": "",
	"none":         "ethtool -K eth0 tx off rx off gso off tso off gro off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off >/dev/null",
	"no tunnels":   "ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off >/dev/null",
	"gro":          "ethtool -K eth0 gro on tx-udp_tnl-segmentation off >/dev/null",
}

// A host with the fast path and one of flannel's talk, and two hosts with it, over wires of all kinds.
func TestMixedAndWires(t *testing.T) {
	for wire, offloads := range wires {
		for _, other := range []string{"flannel", "fast"} {
			t.Run(other+" over "+wire, func(t *testing.T) {
				t.Parallel()
				a, b := newRig(t, other == "fast", other == "fast")
				for _, s := range []*site{a, b} {
					nstest.Sh(t, s.ns, "true; "+offloads)
				}
				a.run(t)
				if other == "flannel" {
					b.flannel(t)
				} else {
					b.run(t)
				}
				for _, family := range []string{"IPv4", "IPv6"} {
					transfer(t, a.inside, b.inside, b.addr(family), 4<<20)
					transfer(t, b.inside, a.inside, a.addr(family), 4<<20)
					ping(t, a.inside, b.inside, b.addr(family), 110)
					ping(t, b.inside, a.inside, a.addr(family), 110)
				}
				for _, s := range []*site{a, b} {
					got := s.packets()
					if s == b && other == "flannel" {
						continue
					}
					if got["sent"] < 100 || got["received"] < 100 || got["refused"]+got["gone"]+got["source"] > 0 {
						t.Errorf("host %d: %v", s.number, got)
					}
				}
			})
		}
	}
}
