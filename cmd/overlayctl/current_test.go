package main

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/subnet"
)

func network(t *testing.T, text string) subnet.Network {
	t.Helper()
	raw, err := subnet.NetworkJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	n, err := subnet.ParseNetwork(raw)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func leaseOf(subnets ...string) subnet.Lease {
	var l subnet.Lease
	for _, s := range subnets {
		l.Endpoints = append(l.Endpoints, subnet.Endpoint{Subnet: netip.MustParsePrefix(s)})
	}
	return l
}

func TestMisfit(t *testing.T) {
	t.Parallel()
	const dual = "10.5.0.0/16,fd00:5::/48"
	for _, test := range []struct {
		name, network string
		lease         subnet.Lease
		want          string
	}{
		{"outside", "10.6.0.0/16", leaseOf("10.5.1.0/24"), "10.5.1.0/24 is outside 10.6.0.0/16"},
		{"the whole network", "10.5.0.0/16", leaseOf("10.4.0.0/15"), "10.4.0.0/15 is outside 10.5.0.0/16"},
		{"another length", "10.5.0.0/16", leaseOf("10.5.1.0/25"), "10.5.1.0/25 is not a /24"},
		{"before the first", `{"Network": "10.5.0.0/16", "SubnetMin": "10.5.2.0"}`, leaseOf("10.5.1.0/24"), "10.5.1.0/24 is not from 10.5.2.0 to 10.5.255.0"},
		{"behind the last", `{"Network": "10.5.0.0/16", "SubnetMax": "10.5.2.0"}`, leaseOf("10.5.3.0/24"), "10.5.3.0/24 is not from 10.5.1.0 to 10.5.2.0"},
		{"family gained", dual, leaseOf("10.5.1.0/24"), ""},
		{"family lost", "10.5.0.0/16", leaseOf("10.5.1.0/24", "fd00:5:0:1::/64"), "has a subnet of a family that the network would not have"},
		{"family replaced", "fd00:5::/48", leaseOf("10.5.1.0/24"), "has a subnet of a family that the network would not have"},
		{"second family outside", dual, leaseOf("10.5.1.0/24", "fd00:6:0:1::/64"), "fd00:6:0:1::/64 is outside fd00:5::/48"},
		{"fits", "10.5.0.0/16", leaseOf("10.5.1.0/24"), ""},
		{"both families fit", dual, leaseOf("10.5.1.0/24", "fd00:5:0:9::/64"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := misfit(network(t, test.network), test.lease); got != test.want {
				t.Errorf("misfit = %q, want %q", got, test.want)
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	got := describe(network(t, `{"Network": "10.5.0.0/28", "SubnetLen": 30, "SubnetMin": "10.5.0.8", "SubnetMax": "10.5.0.8", "Backend": {"Type": "host-gw"}}`))
	if want := "10.5.0.0/28 in /30s from 10.5.0.8 to 10.5.0.8; room for 1 host; backend host-gw"; got != want {
		t.Errorf("describe = %q, want %q", got, want)
	}
}
