package subnet

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseKeyRefuses(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "garbage", "10.12.13.0", "10.12.13.0-", "-24", "10.12.13-24", "10.12.13.0/24", "10.12.13.0-24hi",
		"hi10.12.13.0-24", "10.12.13.0-24/x", "10.12.13.0-33", "10.12.13.0-32", "10.12.13.0-0", "0.0.0.0-0", "10.12.13.0-024",
		"10.12.13.0- 24", "10.12.13.0-+24", "10.12.13.7-24", "010.12.13.0-24", "10a12b13.0-24", "999.12.13.0-24",
		"10.12.13.0-24&", "10.12.13.0-24&2001-56", "10.12.13.0-24&2001::", "10.12.13.0-24&2001::-0", "10.12.13.0-24&2001::-128",
		"10.12.13.0-24&2001::1-64", "10.12.13.0-24&2001::-64hi", "10.12.13.0-24&FC00::-64", "10.12.13.0-24&fc00:0::-64",
		"10.12.13.0-24&10.12.14.0-24", "10.12.13.0-24&::ffff:10.12.14.0-120", "10.12.13.0-24&fc00::%eth0-64",
		"10.12.13.0-24&fc00::-64&fc01::-64", "fc00::-64", "fc00::-64&10.12.13.0-24", "0.0.0.0-0&", "0.0.0.0-0&0.0.0.0-0",
		"&fc00::-64", "::ffff:10.12.13.0-120", strings.Repeat("1", 1<<20),
	} {
		if got, err := ParseKey(name); err == nil {
			t.Errorf("ParseKey(%q) = %v, want an error", name, got)
		} else if len(err.Error()) > 500 {
			t.Errorf("ParseKey(%.20q…): an error of %d bytes", name, len(err.Error()))
		}
	}
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	tests := map[string][]netip.Prefix{
		"10.5.34.0-24":                   {prefix("10.5.34.0/24")},
		"10.5.34.128-31":                 {prefix("10.5.34.128/31")},
		"10.7.100.0-24&fc00:7:0:4c::-64": {prefix("10.7.100.0/24"), prefix("fc00:7:0:4c::/64")},
		"0.0.0.0-0&fc00:0:0:1a::-64":     {prefix("fc00:0:0:1a::/64")},
	}
	for name, want := range tests {
		got, err := ParseKey(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(want, got, compareNetip); diff != "" {
			t.Errorf("ParseKey(%q) (-want +got):\n%s", name, diff)
		}
	}
	if _, err := ParseKey("10.5.34.7-24"); err == nil || err.Error() != `lease key "10.5.34.7-24": 10.5.34.7/24 has host bits set: the subnet is 10.5.34.0/24` {
		t.Error(err)
	}
}

func TestParseLeaseRefuses(t *testing.T) {
	t.Parallel()
	const v4, dual, v6 = "10.5.34.0-24", "10.5.34.0-24&fc00:5::-64", "0.0.0.0-0&fc00:5::-64"
	tests := []struct{ name, key, value, want string }{
		{"key", "config", `{}`, `lease key "config": "config" is not an IPv4 subnet in the form <address>-<length>`},
		{"empty", v4, ``, `the value is not a JSON object: unexpected end of JSON input`},
		{"garbage", v4, `hello`, `the value is not a JSON object: invalid character 'h' looking for beginning of value`},
		{"half", v4, `{"PublicIP":"172.30.0.11"`, `the value is not a JSON object: unexpected end of JSON input`},
		{"text behind", v4, `{"PublicIP":"172.30.0.11"} x`, `the value is not a JSON object: invalid character 'x' after top-level value`},
		{"huge", v4, `{"PublicIP":"172.30.0.11","x":"` + strings.Repeat("x", maxValue-32) + `"}`, `the value has 4097 bytes: at most 4096 are read`},
		{"deep", v4, `{"PublicIP":"172.30.0.11","x":` + strings.Repeat("[", maxValue-30), `the value is not a JSON object: unexpected end of JSON input`},
		{"null", v4, `null`, `PublicIP: missing`},
		{"no address", v4, `{"BackendType":"vxlan"}`, `PublicIP: missing`},
		{"no address, ours", v4, `{"BackendType":"vxlan","HostID":"ab"}`, `PublicIP: missing`},
		{"no address, wireguard host", v4, `{"BackendType":"wireguard","HostID":"ab","Host":"a"}`, `PublicIP: missing`},
		{"no address, flannel's wireguard", v4, `{"BackendType":"wireguard","BackendData":{"PublicKey":"a+/b=","Port":51820}}`, `PublicIP: missing`},
		{"no address, named", v4, `{"BackendType":"vxlan","Host":"laptop"}`, `PublicIP: missing`},
		{"no IPv6 address", dual, `{"PublicIP":"172.30.0.11","PublicIPv6":null}`, `PublicIPv6: missing`},
		{"IPv6 alone without", v6, `{"PublicIP":"172.30.0.11"}`, `PublicIPv6: missing`},
		{"number", v4, `{"PublicIP":5}`, `PublicIP: must be a string, is of type number`},
		{"text", v4, `{"PublicIP":"host"}`, `PublicIP: "host" is not an IPv4 address`},
		{"family", v4, `{"PublicIP":"fd00::1"}`, `PublicIP: "fd00::1" is not an IPv4 address`},
		{"IPv6 family", v6, `{"PublicIPv6":"10.0.0.1"}`, `PublicIPv6: "10.0.0.1" is not an IPv6 address`},
		{"mapped", v6, `{"PublicIPv6":"::ffff:10.0.0.1"}`, `PublicIPv6: "::ffff:10.0.0.1" is not an IPv6 address`},
		{"zone", v6, `{"PublicIPv6":"2001:db8::1%eth0"}`, `PublicIPv6: "2001:db8::1%eth0" is not an IPv6 address`},
		{"unspecified", v6, `{"PublicIPv6":"::"}`, `PublicIPv6: :: is no address that another host can reach`},
		{"loopback", v4, `{"PublicIP":"127.0.0.1"}`, `PublicIP: 127.0.0.1 is no address that another host can reach`},
		{"multicast", v4, `{"PublicIP":"224.0.0.1"}`, `PublicIP: 224.0.0.1 is no address that another host can reach`},
		{"broadcast", v4, `{"PublicIP":"255.255.255.255"}`, `PublicIP: 255.255.255.255 is no address that another host can reach`},
		{"link-local", v6, `{"PublicIPv6":"fe80::1"}`, `PublicIPv6: fe80::1 is no address that another host can reach`},
		{"inside itself", v4, `{"PublicIP":"10.5.34.1"}`, `PublicIP: 10.5.34.1 lies inside the subnet that it is to lead to`},
		{"terminal codes", v4, `{"PublicIP":"172.30.0.11","Host":"a\u001b[2J"}`, `Host: "a\x1b[2J" is too long or cannot be printed`},
		{"machine", v4, `{"PublicIP":"172.30.0.11","Machine":"\n"}`, `Machine: "\n" is too long or cannot be printed`},
		{"backend type", v4, `{"PublicIP":"172.30.0.11","BackendType":{}}`, `BackendType: must be a string, is of type object`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := tt.want
			if tt.name != "key" {
				want = "lease " + tt.key + ": " + want
			}
			l, err := ParseLease(tt.key, []byte(tt.value))
			if err == nil {
				t.Fatalf("accepted as %+v", l)
			}
			if diff := cmp.Diff(want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

// wireLeases are leases as flannel and overlayd store them, byte for byte.
func wireLeases() []struct {
	name, key, value string
	lease            Lease
} {
	v4, v6 := prefix("10.5.34.0/24"), prefix("fc00:5:0:1a::/64")
	ip4, ip6 := addr("172.30.0.11"), addr("fd00:172::12")
	const key4, dual, key6 = "10.5.34.0-24", "10.5.34.0-24&fc00:5:0:1a::-64", "0.0.0.0-0&fc00:5:0:1a::-64"
	vtep := json.RawMessage(`{"VNI":1,"VtepMAC":"5e:96:93:0f:50:82"}`)
	return []struct {
		name, key, value string
		lease            Lease
	}{
		{"vxlan", key4, `{"PublicIP":"172.30.0.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:96:93:0f:50:82"}}`,
			Lease{Backend: "vxlan", Endpoints: []Endpoint{{v4, ip4, vtep}}}},
		{"vxlan without VNI", key4, `{"PublicIP":"172.30.0.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VtepMAC":"5e:96:93:0f:50:82"}}`,
			Lease{Backend: "vxlan", Endpoints: []Endpoint{{v4, ip4, json.RawMessage(`{"VtepMAC":"5e:96:93:0f:50:82"}`)}}}},
		{"dual vxlan", dual, `{"PublicIP":"172.30.0.11","PublicIPv6":"fd00:172::12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:96:93:0f:50:82"},"BackendV6Data":{"VNI":1,"VtepMAC":"5e:96:93:0f:50:82"}}`,
			Lease{Backend: "vxlan", Endpoints: []Endpoint{{v4, ip4, vtep}, {v6, ip6, vtep}}}},
		{"IPv6 alone", key6, `{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:172::12","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"5e:96:93:0f:50:82"}}`,
			Lease{Backend: "vxlan", Endpoints: []Endpoint{{v6, ip6, vtep}}}},
		{"host-gw", key4, `{"PublicIP":"172.30.0.11","PublicIPv6":null,"BackendType":"host-gw"}`,
			Lease{Backend: "host-gw", Endpoints: []Endpoint{{Subnet: v4, PublicIP: ip4}}}},
		{"ipip", key4, `{"PublicIP":"172.30.0.11","PublicIPv6":null,"BackendType":"ipip"}`,
			Lease{Backend: "ipip", Endpoints: []Endpoint{{Subnet: v4, PublicIP: ip4}}}},
		{"ipsec", key4, `{"PublicIP":"172.30.0.11","PublicIPv6":null,"BackendType":"ipsec"}`,
			Lease{Backend: "ipsec", Endpoints: []Endpoint{{Subnet: v4, PublicIP: ip4}}}},
		{"udp and alloc", key4, `{"PublicIP":"172.30.0.11","PublicIPv6":null}`,
			Lease{Endpoints: []Endpoint{{Subnet: v4, PublicIP: ip4}}}},
		{"wireguard", dual, `{"PublicIP":"172.30.0.11","PublicIPv6":"fd00:172::12","BackendType":"wireguard","BackendData":{"PublicKey":"a+/b=","Port":51820},"BackendV6Data":{"PublicKey":"a+/b=","Port":51821}}`,
			Lease{Backend: "wireguard", Endpoints: []Endpoint{
				{v4, ip4, json.RawMessage(`{"PublicKey":"a+/b=","Port":51820}`)}, {v6, ip6, json.RawMessage(`{"PublicKey":"a+/b=","Port":51821}`)}}}},
		{"wireguard peer outside the network", dual, `{"PublicIP":"0.0.0.0","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"a+/b=","Port":51820},"BackendV6Data":{"PublicKey":"a+/b=","Port":51821},"Host":"laptop"}`,
			Lease{Backend: "wireguard", Host: "laptop", Endpoints: []Endpoint{
				{v4, netip.Addr{}, json.RawMessage(`{"PublicKey":"a+/b=","Port":51820}`)}, {v6, netip.Addr{}, json.RawMessage(`{"PublicKey":"a+/b=","Port":51821}`)}}}},
		{"extension", key4, `{"PublicIP":"172.30.0.11","PublicIPv6":null,"BackendType":"extension","BackendData":"a \u003cb\u003e\n"}`,
			Lease{Backend: "extension", Endpoints: []Endpoint{{v4, ip4, json.RawMessage(`"a \u003cb\u003e\n"`)}}}},
		{"overlayd", key4, `{"PublicIP":"172.30.0.11","PublicIPv6":null,"BackendType":"host-gw","HostID":"6f1e","Host":"node 1","Machine":"7e1b"}`,
			Lease{HostID: "6f1e", Host: "node 1", Machine: "7e1b", Backend: "host-gw", Endpoints: []Endpoint{{Subnet: v4, PublicIP: ip4}}}},
		{"reservation by host id", dual, `{"PublicIP":"0.0.0.0","PublicIPv6":null,"HostID":"6f1e"}`,
			Lease{HostID: "6f1e", Endpoints: []Endpoint{{Subnet: v4}, {Subnet: v6}}}},
	}
}

func TestLeaseBytes(t *testing.T) {
	t.Parallel()
	for _, tt := range wireLeases() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := tt.lease.Key(); got != tt.key {
				t.Errorf("Key() = %s, want %s", got, tt.key)
			}
			value, err := tt.lease.Value()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.value, string(value)); diff != "" {
				t.Errorf("Value() (-want +got):\n%s", diff)
			}
			got, err := ParseLease(tt.key, []byte(tt.value))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.lease, got, compareNetip); diff != "" {
				t.Errorf("ParseLease (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseLeaseIsLenient(t *testing.T) {
	t.Parallel()
	want := Lease{Backend: "vxlan", Endpoints: []Endpoint{{prefix("10.5.34.0/24"), addr("172.30.0.11"), json.RawMessage(`{"VNI":1}`)}}}
	for _, value := range []string{
		` { "publicip" : "172.30.0.11", "BACKENDTYPE":"vxlan", "backenddata": { "VNI" : 1 } } `,
		`{"PublicIP":"172.30.0.11","BackendType":"vxlan","BackendData":{"VNI":1},"New":[{}],"BackendV6Data":null,"Host":null}`,
		`{"PublicIP":"172.30.0.11","PublicIPv6":"fe80::1","BackendType":"vxlan","BackendData":{"VNI":1},"BackendV6Data":7}`,
	} {
		got, err := ParseLease("10.5.34.0-24", []byte(value))
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(want, got, compareNetip); diff != "" {
			t.Errorf("%s (-want +got):\n%s", value, diff)
		}
	}
}

func TestLeaseValueRefuses(t *testing.T) {
	t.Parallel()
	ok := Endpoint{Subnet: prefix("10.5.34.0/24"), PublicIP: addr("172.30.0.11")}
	v6 := Endpoint{Subnet: prefix("fc00::/64"), PublicIP: addr("fd00:172::12")}
	tests := map[string]Lease{
		"no endpoint":      {},
		"host bits":        {Endpoints: []Endpoint{{Subnet: prefix("10.5.34.1/24"), PublicIP: ok.PublicIP}}},
		"no address":       {Endpoints: []Endpoint{{Subnet: ok.Subnet}}},
		"other family":     {Endpoints: []Endpoint{{Subnet: ok.Subnet, PublicIP: v6.PublicIP}}},
		"one family twice": {Endpoints: []Endpoint{ok, ok}},
		"IPv6 first":       {Endpoints: []Endpoint{v6, ok}},
		"data not JSON":    {Endpoints: []Endpoint{{ok.Subnet, ok.PublicIP, json.RawMessage(`{`)}}},
		"control code":     {Endpoints: []Endpoint{ok}, Host: "\a"},
	}
	for name, l := range tests {
		if value, err := l.Value(); err == nil {
			t.Errorf("%s: Value() = %s, want an error", name, value)
		}
	}
}

func TestLeaseEndpoint(t *testing.T) {
	t.Parallel()
	l := Lease{Endpoints: []Endpoint{{Subnet: prefix("fc00::/64")}}}
	if e, ok := l.Endpoint(IPv4); ok {
		t.Errorf("Endpoint(IPv4) = %v", e)
	}
	if e, ok := l.Endpoint(IPv6); !ok || e.Subnet != prefix("fc00::/64") {
		t.Errorf("Endpoint(IPv6) = %v, %t", e, ok)
	}
}

func FuzzParseKey(f *testing.F) {
	for _, tt := range wireLeases() {
		f.Add(tt.key)
	}
	f.Add("10.12.13.0-24&2001-56")
	f.Fuzz(func(t *testing.T, name string) {
		subnets, err := ParseKey(name)
		if err != nil {
			return
		}
		if got := keyOf(subnets); got != name {
			t.Errorf("%q is %v, whose key is %q", name, subnets, got)
		}
		for _, p := range subnets {
			if p != p.Masked() || p.Bits() < 1 {
				t.Errorf("%q has the subnet %s", name, p)
			}
		}
	})
}

func FuzzParseLease(f *testing.F) {
	for _, tt := range wireLeases() {
		f.Add(tt.key, []byte(tt.value))
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		l, err := ParseLease(key, value)
		if err != nil {
			return
		}
		canonical, err := l.Value()
		if err != nil {
			// Escaping for HTML, as flannel does, lengthens it.
			if strings.Contains(err.Error(), "at most") {
				return
			}
			t.Fatalf("%s: %v", value, err)
		}
		again, err := ParseLease(l.Key(), canonical)
		if err != nil {
			t.Fatalf("%s: %v", canonical, err)
		}
		// The same escaping may spell Data in another way, once.
		twice, err := again.Value()
		if err != nil || !slices.Equal(canonical, twice) {
			t.Errorf("%s turns into %s, %v", canonical, twice, err)
		}
		if l.Key() != key || again.HostID != l.HostID || again.Host != l.Host || again.Backend != l.Backend {
			t.Errorf("%+v turns into %+v", l, again)
		}
	})
}
