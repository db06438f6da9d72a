package probe_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/probe"
)

func TestWays(t *testing.T) {
	t.Parallel()
	var got []string
	for _, p := range []api.Peer{
		{Host: "not reached", Subnets: []string{"10.5.1.0/24"}, PublicIPs: []string{"172.30.0.1"}, Backend: "udp"},
		{Host: "no address", Subnets: []string{"10.5.2.0/24"}, Backend: "host-gw", Path: "host-gw"},
		{Host: "nonsense", Subnets: []string{"x"}, PublicIPs: []string{"y"}, Backend: "vxlan", Path: "vxlan"},
		{Host: "vxlan", Subnets: []string{"10.5.3.0/24", "fd00:5:0:3::/64"}, PublicIPs: []string{"172.30.0.3"}, Backend: "vxlan", Path: "vxlan"},
		{Host: "flannel's udp", Subnets: []string{"10.5.6.0/24"}, PublicIPs: []string{"172.30.0.6"}, Path: "udp"},
		{Host: "near", Subnets: []string{"10.5.4.0/24"}, PublicIPs: []string{"172.30.0.4"}, Backend: "vxlan", Path: "direct"},
		{Host: "host-gw", Subnets: []string{"10.5.5.0/24", "fd00:5:0:5::/64"}, PublicIPs: []string{"172.30.0.5", "fd00:172::5"}, Backend: "host-gw", Path: "host-gw"},
	} {
		for _, w := range probe.Ways(p) {
			got = append(got, fmt.Sprintf("%s: %s by %s or %s, %t", p.Host, w.Subnet, w.Overlay, w.Underlay, w.Tunnelled()))
		}
	}
	if diff := cmp.Diff([]string{
		"not reached: 10.5.1.0/24 by invalid IP or 172.30.0.1, false",
		"no address: 10.5.2.0/24 by invalid IP or invalid IP, false",
		"vxlan: 10.5.3.0/24 by 10.5.3.0 or 172.30.0.3, true",
		"vxlan: fd00:5:0:3::/64 by fd00:5:0:3:: or invalid IP, true",
		"flannel's udp: 10.5.6.0/24 by 10.5.6.0 or 172.30.0.6, true",
		"near: 10.5.4.0/24 by 10.5.4.0 or 172.30.0.4, true",
		"host-gw: 10.5.5.0/24 by 172.30.0.5 or 172.30.0.5, false",
		"host-gw: fd00:5:0:5::/64 by fd00:172::5 or fd00:172::5, false",
	}, got); diff != "" {
		t.Errorf("ways (-want +got):\n%s", diff)
	}
}
