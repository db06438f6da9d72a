package backend

import (
	"strings"
	"testing"

	"github.com/overlayd/overlayd/subnet"
)

func readNetwork(t *testing.T, text string) subnet.Network {
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

func of(cidr, backend string) string {
	return `{"Network":"` + cidr + `","Backend":` + backend + `}`
}

func TestClash(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, a, b, want string }{ // want: empty: they can be on one host
		{"same range", "10.1.0.0/16", "10.1.0.0/16", "10.1.0.0/16 overlaps 10.1.0.0/16"},
		{"range within", "10.1.0.0/16", "10.0.0.0/8", "10.1.0.0/16 overlaps 10.0.0.0/8"},
		{"one family overlaps", "10.1.0.0/16,fd00::/48", "10.2.0.0/16,fd00::/56", "fd00::/48 overlaps fd00::/56"},
		{"one VNI by default", "10.1.0.0/16", "10.2.0.0/16", "VNI 1 is the same"},
		{"one VNI, two ports", of("10.1.0.0/16", `{"Type":"vxlan","VNI":7,"Port":4789}`), of("10.2.0.0/16", `{"Type":"vxlan","VNI":7}`), "VNI 7 is the same"},
		{"one port of vxlan", of("10.1.0.0/16", `{"Type":"vxlan","VNI":7}`), "10.2.0.0/16", ""},
		{"vxlan and udp of one port", of("10.1.0.0/16", `{"Type":"udp","Port":8472}`), "10.2.0.0/16", "UDP port 8472 is the same (udp and vxlan)"},
		{"wireguard twice", of("10.1.0.0/16", `{"Type":"wireguard"}`), of("10.2.0.0/16", `{"Type":"wireguard"}`), "UDP port 51820 is the same"},
		{"the other's second port", `{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"wireguard"}}`,
			of("10.2.0.0/16", `{"Type":"wireguard","ListenPort":51821,"ListenPortV6":1}`), "UDP port 51821 is the same"},
		{"a second port that is not used", of("10.1.0.0/16", `{"Type":"wireguard"}`), of("10.2.0.0/16", `{"Type":"wireguard","ListenPort":51821,"ListenPortV6":1}`), ""},
		{"ipip twice", of("10.1.0.0/16", `{"Type":"ipip"}`), of("10.2.0.0/16", `{"Type":"ipip"}`), "both are of ipip"},
		{"host-gw twice", of("10.1.0.0/16", `{"Type":"host-gw"}`), of("10.2.0.0/16", `{"Type":"host-gw"}`), ""},
		{"of no backend that is known", of("10.1.0.0/16", `{"Type":"geneve"}`), "10.2.0.0/16", ""},
	} {
		a, b := readNetwork(t, test.a), readNetwork(t, test.b)
		for _, err := range []error{Clash(a, b), Clash(b, a)} {
			if test.want == "" && err != nil || test.want != "" && err == nil {
				t.Errorf("%s: %v, want %q", test.name, err, test.want)
			}
		}
		if err := Clash(a, b); test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

// TestDistinct makes networks one after the other, each without a word about numbers: no two clash.
func TestDistinct(t *testing.T) {
	t.Parallel()
	others := []subnet.Network{readNetwork(t, "10.0.0.0/16")}
	for i, test := range []struct{ text, want string }{
		{"10.1.0.0/16", `{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`},
		{of("10.2.0.0/16", `{"Type":"vxlan","vni":9}`), `{"Network":"10.2.0.0/16","Backend":{"Type":"vxlan","vni":9}}`},
		{"10.3.0.0/16", `{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":3}}`},
		{of("10.4.0.0/16", `{"Type":"wireguard"}`), `{"Network":"10.4.0.0/16","Backend":{"ListenPort":51820,"ListenPortV6":51821,"Type":"wireguard"}}`},
		{`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"wireguard","PSK":"` + strings.Repeat("A", 43) + `="}}`,
			`{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd05::/48","Backend":{"ListenPort":51821,"ListenPortV6":51822,"PSK":"` +
				strings.Repeat("A", 43) + `=","Type":"wireguard"}}`},
		{of("10.9.0.0/16", `{"Type":"wireguard"}`), `{"Network":"10.9.0.0/16","Backend":{"ListenPort":51823,"ListenPortV6":51824,"Type":"wireguard"}}`},
		{of("10.10.0.0/16", `{"Type":"wireguard","Mode":"auto"}`), `{"Network":"10.10.0.0/16","Backend":{"ListenPort":51824,"Mode":"auto","Type":"wireguard"}}`},
		{of("10.6.0.0/16", `{"Type":"udp"}`), `{"Network":"10.6.0.0/16","Backend":{"Port":8285,"Type":"udp"}}`},
		{of("10.7.0.0/16", `{"Type":"udp"}`), `{"Network":"10.7.0.0/16","Backend":{"Port":8286,"Type":"udp"}}`},
		{of("10.8.0.0/16", `{"Type":"host-gw"}`), `{"Network":"10.8.0.0/16","Backend":{"Type":"host-gw"}}`},
	} {
		raw, err := subnet.NetworkJSON(test.text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Distinct(raw, subnet.Network{}, others)
		if err != nil || string(got) != test.want {
			t.Errorf("Distinct(%s) = %s, %v; want %s", test.text, got, err, test.want)
			continue
		}
		n := readNetwork(t, string(got))
		for j, o := range others {
			if err := Clash(n, o); err != nil {
				t.Errorf("%d and %d: %v", i, j, err)
			}
		}
		others = append(others, n)
	}
	for _, test := range []struct{ before, text, want string }{
		{of("10.30.0.0/16", `{"Type":"vxlan","VNI":20}`), "10.31.0.0/16", `"VNI":20`},
		{of("10.30.0.0/16", `{"Type":"vxlan","VNI":9}`), "10.31.0.0/16", `"VNI":4`}, // another has it
		{of("10.30.0.0/16", `{"Type":"wireguard","ListenPort":60000}`), of("10.31.0.0/16", `{"Type":"wireguard"}`), `"ListenPort":60000,"ListenPortV6":51825`},
		{of("10.30.0.0/16", `{"Type":"udp","Port":60000}`), of("10.31.0.0/16", `{"Type":"udp"}`), `"Port":60000`},
		{of("10.30.0.0/16", `{"Type":"udp","Port":60000}`), "10.31.0.0/16", `"VNI":4`},
	} {
		raw, err := subnet.NetworkJSON(test.text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Distinct(raw, readNetwork(t, test.before), others); err != nil || !strings.Contains(string(got), test.want) {
			t.Errorf("after %s, %s is %s, %v; want %s", test.before, test.text, got, err, test.want)
		}
	}
}
