package subnet

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	addr   = netip.MustParseAddr
	prefix = netip.MustParsePrefix

	// compareNetip lets go-cmp look at addresses, which have no exported fields.
	compareNetip = cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
)

func mustNetwork(t testing.TB, text string) Network {
	t.Helper()
	raw, err := NetworkJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	n, err := ParseNetwork(raw)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestParseNetworkRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, raw, want string }{
		{"empty", ``, `not JSON: unexpected end of JSON input`},
		{"half", `{"Network":`, `not JSON: unexpected end of JSON input`},
		{"two documents", `{"Network":"10.3.0.0/16"}{}`, `not JSON: invalid character '{' after top-level value`},
		{"not an object", `"10.3.0.0/16"`, `"10.3.0.0/16" is not an object: write {"Network": "10.244.0.0/16"}`},
		{"huge", `{"Network":"` + strings.Repeat("1", maxDocument) + `"}`, `65550 bytes are too many: at most 65536 are read`},
		{"two spellings", `{"Network":"10.3.0.0/16","network":"10.4.0.0/16"}`, `Network: given twice, in two spellings: remove one`},

		{"no network", `{}`, `Network: missing: give the IPv4 range of the network, like "10.244.0.0/16", or set EnableIPv4 to false`},
		{"null network", `{"Network":null}`, `Network: missing: give the IPv4 range of the network, like "10.244.0.0/16", or set EnableIPv4 to false`},
		{"no IPv6 network", `{"Network":"10.3.0.0/16","EnableIPv6":true}`, `IPv6Network: missing: give the IPv6 range of the network, like "fd00:244::/48", or set EnableIPv6 to false`},
		{"no family", `{"EnableIPv4":false}`, `EnableIPv4 and EnableIPv6: both are false: set one of them to true`},
		{"EnableIPv4 type", `{"EnableIPv4":"yes"}`, `EnableIPv4: "yes" is not true or false`},
		{"EnableIPv6 type", `{"Network":"10.3.0.0/16","EnableIPv6":1}`, `EnableIPv6: 1 is not true or false`},
		{"EnableNFTables type", `{"Network":"10.3.0.0/16","EnableNFTables":"on"}`, `EnableNFTables: "on" is not true or false`},

		{"network type", `{"Network":10}`, `Network: 10 is not a string`},
		{"network text", `{"Network":"10.3.0.0"}`, `Network: "10.3.0.0" is not an IPv4 range like "10.244.0.0/16"`},
		{"network family", `{"Network":"fd00::/48"}`, `Network: "fd00::/48" is not an IPv4 range like "10.244.0.0/16"`},
		{"IPv6 network family", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"10.3.0.0/16"}`, `IPv6Network: "10.3.0.0/16" is not an IPv6 range like "fd00:244::/48"`},
		{"everything", `{"Network":"0.0.0.0/0"}`, `Network: 0.0.0.0/0 overlaps 0.0.0.0/8 (this host): choose a private range like "10.244.0.0/16"`},
		{"loopback", `{"Network":"127.1.0.0/16"}`, `Network: 127.1.0.0/16 overlaps 127.0.0.0/8 (loopback): choose a private range like "10.244.0.0/16"`},
		{"link-local", `{"Network":"169.254.0.0/16"}`, `Network: 169.254.0.0/16 overlaps 169.254.0.0/16 (link-local): choose a private range like "10.244.0.0/16"`},
		{"multicast", `{"Network":"239.0.0.0/16"}`, `Network: 239.0.0.0/16 overlaps 224.0.0.0/4 (multicast): choose a private range like "10.244.0.0/16"`},
		{"IPv6 multicast", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ff02::/48"}`, `IPv6Network: ff02::/48 overlaps ff00::/8 (multicast): choose a private range like "fd00:244::/48"`},
		{"IPv4-mapped", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"::ffff:10.3.0.0/112"}`, `IPv6Network: ::ffff:10.3.0.0/112 overlaps ::ffff:0.0.0.0/96 (IPv4-mapped): choose a private range like "fd00:244::/48"`},

		{"network too small", `{"Network":"10.3.0.0/29"}`, `Network: 10.3.0.0/29 is too small for four subnets: choose a /28 or larger`},
		{"IPv6 network too small", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/125"}`, `IPv6Network: fd00::/125 is too small for four subnets: choose a /124 or larger`},
		{"length type", `{"Network":"10.3.0.0/16","SubnetLen":"x"}`, `SubnetLen: "x" is not a whole number`},
		{"length below zero", `{"Network":"10.3.0.0/16","SubnetLen":-1}`, `SubnetLen: -1 is not a whole number`},
		{"length fraction", `{"Network":"10.3.0.0/16","SubnetLen":24.5}`, `SubnetLen: 24.5 is not a whole number`},
		{"length too long", `{"Network":"10.3.0.0/16","SubnetLen":31}`, `SubnetLen: 31 leaves no room for hosts in a subnet: choose 18 to 30`},
		{"length too short", `{"Network":"10.3.0.0/16","SubnetLen":17}`, `SubnetLen: 17 leaves no room for four subnets in Network 10.3.0.0/16: choose 18 to 30`},
		{"IPv6 length too long", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":127}`, `IPv6SubnetLen: 127 leaves no room for hosts in a subnet: choose 50 to 126`},
		{"IPv6 length too short", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":49}`, `IPv6SubnetLen: 49 leaves no room for four subnets in IPv6Network fd00::/48: choose 50 to 126`},

		{"min type", `{"Network":"10.3.0.0/16","SubnetMin":5}`, `SubnetMin: 5 is not a string`},
		{"min text", `{"Network":"10.3.0.0/16","SubnetMin":"five"}`, `SubnetMin: "five" is not an address like "10.3.1.0"`},
		{"min outside", `{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}`, `SubnetMin: 10.4.0.0 lies outside the network 10.3.0.0/16`},
		{"min of the other family", `{"Network":"10.3.0.0/16","SubnetMin":"fd00::"}`, `SubnetMin: fd00:: lies outside the network 10.3.0.0/16`},
		{"min unaligned", `{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.7"}`, `SubnetMin: 10.3.1.7 is not the start of a /24 subnet: choose 10.3.1.0`},
		{"max text", `{"Network":"10.3.0.0/16","SubnetMax":""}`, `SubnetMax: "" is not an address like "10.3.255.0"`},
		{"max outside", `{"Network":"10.3.0.0/16","SubnetMax":"10.2.0.0"}`, `SubnetMax: 10.2.0.0 lies outside the network 10.3.0.0/16`},
		{"max unaligned", `{"Network":"10.3.0.0/16","SubnetMax":"10.3.9.1"}`, `SubnetMax: 10.3.9.1 is not the start of a /24 subnet: choose 10.3.9.0`},
		{"inverted", `{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0"}`, `SubnetMin: 10.3.9.0 lies behind SubnetMax 10.3.8.0: no subnet is left to lease`},
		{"IPv6 min outside", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetMin":"fd01::"}`, `IPv6SubnetMin: fd01:: lies outside the network fd00::/48`},
		{"IPv6 max unaligned", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetMax":"fd00::1"}`, `IPv6SubnetMax: fd00::1 is not the start of a /64 subnet: choose fd00::`},
		{"zone", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetMin":"fd00::%eth0"}`, `IPv6SubnetMin: fd00::%eth0 lies outside the network fd00::/48`},

		{"a key in a text", `{"Network":"10.3.0.0/16","Backend":"{\"Type\":\"ipsec\",\"PSK\":\"geheim\"}"}`, `Backend: "{… is not an object: write {"Type": "vxlan"}`},
		{"backend text", `{"Network":"10.3.0.0/16","Backend":"vxlan"}`, `Backend: "vxlan" is not an object: write {"Type": "vxlan"}`},
		{"backend without type", `{"Network":"10.3.0.0/16","Backend":{"VNI":1}}`, `Backend.Type: missing: name a backend, like "vxlan"`},
		{"backend type null", `{"Network":"10.3.0.0/16","Backend":{"Type":null}}`, `Backend.Type: missing: name a backend, like "vxlan"`},
		{"backend type number", `{"Network":"10.3.0.0/16","Backend":{"Type":7}}`, `Backend.Type: 7 is not a string`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n, err := ParseNetwork([]byte(tt.raw))
			if err == nil {
				t.Fatalf("accepted as %+v", n)
			}
			if diff := cmp.Diff("network config: "+tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseNetwork(t *testing.T) {
	t.Parallel()
	vxlan, udp := Backend{Type: "vxlan"}, Backend{Type: "udp"} // flannel's default does without IPv6
	tests := []struct {
		name, raw string
		want      Network
	}{
		{"defaults", `{"Network":"10.3.0.0/16"}`, Network{Pools: []Pool{
			{prefix("10.3.0.0/16"), 24, addr("10.3.1.0"), addr("10.3.255.0")}}, Backend: udp}},
		{"keys in any case, nulls, masked", ` {"network":"10.3.7.9/16", "SUBNETLEN":null, "backend":{"type":"Host-GW"} }`, Network{Pools: []Pool{
			{prefix("10.3.0.0/16"), 24, addr("10.3.1.0"), addr("10.3.255.0")}},
			Backend: Backend{"host-gw", json.RawMessage(`{"type":"Host-GW"}`)}}},
		{"everything", `{"EnableIPv4":true,"EnableIPv6":true,"EnableNFTables":true,"Network":"10.3.0.0/16","SubnetLen":26,
			"SubnetMin":"10.3.5.64","SubnetMax":"10.3.8.0","IPv6Network":"fd00:3::/56","IPv6SubnetLen":72,
			"IPv6SubnetMin":"fd00:3::","IPv6SubnetMax":"fd00:3:0:4::","Backend":{"Type":"vxlan","VNI": 7}}`,
			Network{Pools: []Pool{
				{prefix("10.3.0.0/16"), 26, addr("10.3.5.64"), addr("10.3.8.0")},
				{prefix("fd00:3::/56"), 72, addr("fd00:3::"), addr("fd00:3:0:4::")}},
				Backend: Backend{"vxlan", json.RawMessage(`{"Type":"vxlan","VNI":7}`)}}},
		{"IPv6 alone", `{"EnableIPv4":false,"EnableIPv6":true,"Network":"ignored","IPv6Network":"fd00:3::/48"}`, Network{Pools: []Pool{
			{prefix("fd00:3::/48"), 64, addr("fd00:3:0:1::"), addr("fd00:3:0:ffff::")}}, Backend: vxlan}},
		{"IPv6 not enabled", `{"Network":"10.3.0.0/16","IPv6Network":"ignored"}`, Network{Pools: []Pool{
			{prefix("10.3.0.0/16"), 24, addr("10.3.1.0"), addr("10.3.255.0")}}, Backend: udp}},
		{"last range with /24", `{"Network":"10.3.0.0/22","SubnetLen":0}`, Network{Pools: []Pool{
			{prefix("10.3.0.0/22"), 24, addr("10.3.1.0"), addr("10.3.3.0")}}, Backend: udp}},
		{"first range without", `{"Network":"10.3.0.0/23"}`, Network{Pools: []Pool{
			{prefix("10.3.0.0/23"), 25, addr("10.3.0.128"), addr("10.3.1.128")}}, Backend: udp}},
		{"smallest", `{"Network":"10.3.0.0/28"}`, Network{Pools: []Pool{
			{prefix("10.3.0.0/28"), 30, addr("10.3.0.4"), addr("10.3.0.12")}}, Backend: udp}},
		{"IPv6 range without /64", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:3::/63"}`, Network{Pools: []Pool{
			{prefix("fd00:3::/63"), 65, addr("fd00:3:0:0:8000::"), addr("fd00:3:0:1:8000::")}}, Backend: vxlan}},
		{"unknown keys", `{"Network":"10.3.0.0/16","subnetlength":25,"Comment":"ours","Gone":null}`, Network{Pools: []Pool{
			{prefix("10.3.0.0/16"), 24, addr("10.3.1.0"), addr("10.3.255.0")}}, Backend: udp,
			Unknown: []string{"Comment", "subnetlength"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseNetwork([]byte(tt.raw))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, compareNetip); diff != "" {
				t.Errorf("network (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNetworkJSON(t *testing.T) {
	t.Parallel()
	bad := map[string]string{
		"":                          `"" is neither a JSON object nor a range like 10.244.0.0/16 or 10.244.0.0/16,fd00:244::/48`,
		"10.244.0.0":                `"10.244.0.0" is neither a JSON object nor a range like 10.244.0.0/16 or 10.244.0.0/16,fd00:244::/48`,
		"10.244.0.0/16,":            `"10.244.0.0/16," is neither a JSON object nor a range like 10.244.0.0/16 or 10.244.0.0/16,fd00:244::/48`,
		"10.1.0.0/16,10.2.0.0/16":   `"10.1.0.0/16,10.2.0.0/16" has two ranges of one family: at most one IPv4 and one IPv6 range`,
		"10.244.0.0/30":             `Network: 10.244.0.0/30 is too small for four subnets: choose a /28 or larger`,
		`'{"Backend":{"PSK":"x"}}'`: `"'{…" is neither a JSON object nor a range like 10.244.0.0/16 or 10.244.0.0/16,fd00:244::/48`,
		`{"Network":"10.3.0.0/16"`:  `not JSON: unexpected end of JSON input`,
	}
	for text, want := range bad {
		if raw, err := NetworkJSON(text); err == nil || err.Error() != "network config: "+want {
			t.Errorf("NetworkJSON(%q) = %s, %v, want the error %q", text, raw, err, want)
		}
	}
	good := map[string]string{
		" 10.244.1.0/16\n":             `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`,
		"fd00:244::/48":                `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}`,
		"10.244.0.0/16, fd00:244::/48": `{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}`,
		"{ \"backend\" : {\"Type\": \"udp\"},\n \"network\" : \"10.3.0.0/16\", \"x\": [1, 2], \"SubnetLen\": null }": `{"Network":"10.3.0.0/16","Backend":{"Type":"udp"},"x":[1,2]}`,
	}
	for text, want := range good {
		raw, err := NetworkJSON(text)
		if err != nil || string(raw) != want {
			t.Errorf("NetworkJSON(%q) = %s, %v, want %s", text, raw, err, want)
		}
	}
}

func TestAdmit(t *testing.T) {
	t.Parallel()
	usual := mustNetwork(t, "10.244.0.0/16,fd00:244::/48")
	for _, tt := range []struct {
		n    Network
		p    netip.Prefix
		want string // "" admits
	}{
		{usual, netip.Prefix{}, "invalid Prefix lies outside the network 10.244.0.0/16,fd00:244::/48"},
		{usual, prefix("10.245.0.0/24"), "10.245.0.0/24 lies outside the network 10.244.0.0/16,fd00:244::/48"},
		{usual, prefix("10.244.0.0/15"), "10.244.0.0/15 lies outside the network 10.244.0.0/16,fd00:244::/48"},
		{usual, prefix("10.244.0.0/19"), "10.244.0.0/19 is too large for a lease of the network 10.244.0.0/16,fd00:244::/48: at most a /20 is followed"},
		{usual, prefix("fd00:244::/59"), "fd00:244::/59 is too large for a lease of the network 10.244.0.0/16,fd00:244::/48: at most a /60 is followed"},
		{mustNetwork(t, "10.244.0.0/16"), prefix("fd00:244::/64"), "fd00:244::/64 lies outside the network 10.244.0.0/16"},
		{mustNetwork(t, "10.244.0.0/22"), prefix("10.244.0.0/23"), "10.244.0.0/23 is too large for a lease of the network 10.244.0.0/22: at most a /24 is followed"},
		{mustNetwork(t, "10.244.0.0/22"), prefix("10.244.0.0/24"), ""},
		{usual, prefix("10.244.0.0/20"), ""},
		{usual, prefix("fd00:244::/60"), ""},
		{usual, prefix("10.244.3.0/24"), ""},
		{usual, prefix("10.244.3.8/31"), ""},
	} {
		got := ""
		if err := tt.n.Admit(tt.p); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: Admit(%s) = %q, want %q", tt.n, tt.p, got, tt.want)
		}
	}
}

func TestNetworkAccessors(t *testing.T) {
	t.Parallel()
	n := mustNetwork(t, "10.244.0.0/16,fd00:244::/48")
	if got, want := n.String(), "10.244.0.0/16,fd00:244::/48"; got != want {
		t.Errorf("String() = %s, want %s", got, want)
	}
	contains := map[netip.Prefix]bool{
		{}:                              false,
		prefix("10.244.0.0/15"):         false,
		prefix("10.245.0.0/24"):         false,
		prefix("fd00:245::/64"):         false,
		prefix("::ffff:10.244.0.0/120"): false,
		prefix("10.244.0.0/16"):         true,
		prefix("10.244.255.0/24"):       true,
		prefix("fd00:244:0:5::/64"):     true,
	}
	for p, want := range contains {
		if got := n.Contains(p); got != want {
			t.Errorf("Contains(%s) = %t, want %t", p, got, want)
		}
	}
	if p, ok := mustNetwork(t, "10.244.0.0/16").Pool(IPv6); ok {
		t.Errorf("an IPv4 network has the IPv6 pool %v", p)
	}
	if p, ok := n.Pool(IPv6); !ok || p.SubnetLen != 64 {
		t.Errorf("Pool(IPv6) = %v, %t", p, ok)
	}
}

func FuzzParseNetwork(f *testing.F) {
	f.Add([]byte(`{"Network":"10.3.0.0/16"}`))
	f.Add([]byte(`{"EnableIPv6":true,"Network":"10.3.0.0/16","IPv6Network":"fd00::/3","IPv6SubnetLen":126,"a":"<&>"}`))
	f.Add([]byte(`{"enableipv4":false,"ENABLEIPV6":true,"IPv6Network":"fd00:3::/56","IPv6SubnetMin":"fd00:3::","Backend":{"Type":"X"}}`))
	f.Add([]byte(`10.244.0.0/16,fd00:244::/48`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		canonical, err := NetworkJSON(string(raw))
		if err != nil {
			return
		}
		n, err := ParseNetwork(canonical)
		if err != nil {
			t.Fatalf("%s: %v", canonical, err)
		}
		again, err := NetworkJSON(string(canonical))
		if err != nil || string(again) != string(canonical) {
			t.Errorf("%s turns into %s, %v", canonical, again, err)
		}
		for _, slot := range []uint64{0, n.Slots() - 1} {
			if subnets := n.Slot(slot); !n.Fits(subnets) {
				t.Errorf("%s: slot %d is %v, which does not fit", canonical, slot, subnets)
			}
		}
	})
}
