package backend

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// secretHost is testHost with a key, in the network of its tests.
func secretHost() Host {
	h := testHost()
	h.WireGuard = kernel.Secret{8}
	h.Ranges = []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fc00:5::/48")}
	return h
}

// peerKey is another host's, and pskText something that hosts share.
var (
	peerKey = kernel.Secret{16}.Public()
	pskText = "AwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
)

func TestWireGuardRefuses(t *testing.T) {
	t.Parallel()
	narrow := secretHost()
	narrow.MTU = 1300
	for name, tt := range map[string]struct {
		options string
		host    Host
		want    string
	}{
		"a port of 17 bits":        {`{"Type":"wireguard","ListenPort":70000}`, secretHost(), "Backend.ListenPort: number 70000 is not a value of type uint16"},
		"port 0":                   {`{"Type":"wireguard","ListenPort":0}`, secretHost(), "0 is no port"},
		"one port for two links":   {`{"Type":"wireguard","ListenPortV6":51820}`, secretHost(), "Backend.ListenPortV6: 51820 is ListenPort"},
		"a mode of no one":         {`{"Type":"wireguard","Mode":"IPv4"}`, secretHost(), `Backend.Mode: "IPv4" is none of separate, auto, ipv4 and ipv6`},
		"a duration":               {`{"Type":"wireguard","PersistentKeepaliveInterval":"25s"}`, secretHost(), "Backend.PersistentKeepaliveInterval: string is not a value of type uint16"},
		"a PSK that is short":      {`{"Type":"wireguard","PSK":"c2hvcnQ="}`, secretHost(), "Backend.PSK: no wireguard key: it must be 32 bytes in base64"},
		"an MTU too small":         {`{"Type":"wireguard","MTU":600}`, secretHost(), "Backend.MTU: 600 leaves 520 bytes for containers: IPv4 needs 576"},
		"an MTU above the link's":  {`{"Type":"wireguard","MTU":9000}`, secretHost(), "Backend.MTU: 9000 is more than eth0 carries (1500)"},
		"a link too narrow":        {`{"Type":"wireguard"}`, narrow, "the MTU of eth0, 1300, leaves 1220 bytes for containers: IPv6 needs 1280"},
		"a host without a key":     {`{"Type":"wireguard"}`, testHost(), "this host has no wireguard key"},
		"what is no list of words": {`{"Type":"wireguard","Mode":["auto"]}`, secretHost(), "Backend.Mode: array is not a value of type string"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := New(subnet.Backend{Type: WireGuard, Options: json.RawMessage(tt.options)}, tt.host)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "c2hv") {
				t.Errorf("New(%s) = %v, want an error with %q", tt.options, err, tt.want)
			}
		})
	}
}

func newWireGuard(t *testing.T, options string, host Host) Backend {
	t.Helper()
	b, err := New(subnet.Backend{Type: WireGuard, Options: json.RawMessage(options)}, host)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWireGuardLease(t *testing.T) {
	t.Parallel()
	v4 := secretHost()
	v4.Addrs = map[subnet.Family]netip.Addr{subnet.IPv4: v4.Addrs[subnet.IPv4]}
	v4.PublicIPs = v4.Addrs
	nat := v4
	nat.PublicIPs = map[subnet.Family]netip.Addr{subnet.IPv4: netip.MustParseAddr("203.0.113.9")}
	key := v4.WireGuard.Public().String()
	for name, tt := range map[string]struct {
		options string
		host    Host
		want    string // BackendData, and BackendV6Data
	}{
		"as flannel": {`{}`, v4, `{"PublicKey":"KEY","Port":51820}`},
		"behind NAT": {`{"ListenPort":4500}`, nat, `{"PublicKey":"KEY","Port":4500,"Endpoints":["203.0.113.9:4500","172.30.0.11:4500"],"NAT":true}`},
		"separate": {`{}`, secretHost(), `{"PublicKey":"KEY","Port":51820,"Endpoints":["172.30.0.11:51820","[fd00:172::11]:51820"]}` +
			`{"PublicKey":"KEY","Port":51821,"Endpoints":["[fd00:172::11]:51821","172.30.0.11:51821"]}`},
		"one link": {`{"Mode":"ipv6"}`, secretHost(), `{"PublicKey":"KEY","Port":51820,"Endpoints":["172.30.0.11:51820","[fd00:172::11]:51820"]}` +
			`{"PublicKey":"KEY","Port":51820,"Endpoints":["[fd00:172::11]:51820","172.30.0.11:51820"]}`},
	} {
		b := newWireGuard(t, tt.options, tt.host)
		got := string(b.Data(subnet.IPv4))
		if len(tt.host.Addrs) > 1 {
			got += string(b.Data(subnet.IPv6))
		}
		if diff := cmp.Diff(strings.ReplaceAll(tt.want, "KEY", key), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// leaseOf is a dual-stack lease with these data.
func leaseOf(n, v4, v6 string) subnet.Lease {
	return subnet.Lease{HostID: "h" + n, Backend: WireGuard, Endpoints: []subnet.Endpoint{
		{Subnet: netip.MustParsePrefix("10.5." + n + ".0/24"), PublicIP: netip.MustParseAddr("172.30.0." + n), Data: json.RawMessage(v4)},
		{Subnet: netip.MustParsePrefix("fc00:5:0:" + n + "::/64"), PublicIP: netip.MustParseAddr("fd00:172::" + n), Data: json.RawMessage(v6)},
	}}
}

func TestWireGuardPeer(t *testing.T) {
	t.Parallel()
	key := peerKey.String()
	ours := `{"PublicKey":"` + key + `","Port":51820}`
	flannels6 := `{"PublicKey":"` + key + `","Port":51821}`
	old := `{"PublicKey":"` + key + `"}`
	far := `{"PublicKey":"` + key + `","Port":7000,"Endpoints":["172.30.0.12:7000","198.51.100.1:7000"]}`
	for name, tt := range map[string]struct{ options, v4, v6, want string }{
		"separate": {`{}`, ours, flannels6, `
wg set overlay-wg peer KEY endpoint 172.30.0.12:51820 allowed-ips "10.5.12.0/24"
wg set overlay6-wg peer KEY endpoint [fd00:172::12]:51821 allowed-ips "fc00:5:0:12::/64"`},
		"flannel's of before ports": {`{}`, old, old, `
wg set overlay-wg peer KEY endpoint 172.30.0.12:51820 allowed-ips "10.5.12.0/24"
wg set overlay6-wg peer KEY endpoint [fd00:172::12]:51821 allowed-ips "fc00:5:0:12::/64"`},
		"flannel's Mode auto": {`{"Mode":"auto"}`, ours, flannels6, `
wg set overlay-wg peer KEY endpoint 172.30.0.12:51820 allowed-ips "10.5.12.0/24,fc00:5:0:12::/64" also [fd00:172::12]:51820`},
		"Mode ipv6, by another port": {`{"Mode":"ipv6","PersistentKeepaliveInterval":7}`, far, flannels6, `
wg set overlay-wg peer KEY endpoint [fd00:172::12]:7000 persistent-keepalive 7 allowed-ips "10.5.12.0/24,fc00:5:0:12::/64" also 172.30.0.12:7000 also 198.51.100.1:7000`},
		"a PSK": {`{"PSK":"` + pskText + `","Mode":"auto"}`, ours, ours, `
wg set overlay-wg peer KEY preshared-key FILE endpoint 172.30.0.12:51820 allowed-ips "10.5.12.0/24,fc00:5:0:12::/64" also [fd00:172::12]:51820`},
		"a key that is none":        {`{}`, `{"PublicKey":"x","Port":1}`, ours, "BackendData: PublicKey: \"x\" is no wireguard key"},
		"its own key":               {`{}`, `{"PublicKey":"` + secretHost().WireGuard.Public().String() + `"}`, ours, "is this host's own"},
		"no data":                   {`{}`, `{}`, ours, "BackendData: PublicKey"},
		"what is not JSON":          {`{}`, `{"PublicKey":5}`, ours, "BackendData: json"},
		"a port of the system's":    {`{}`, `{"PublicKey":"` + key + `","Port":53}`, ours, "Port 53 is one of the system's"},
		"an endpoint at the host":   {`{}`, `{"PublicKey":"` + key + `","Endpoints":["127.0.0.1:5000"]}`, ours, "127.0.0.1:5000 is no address that another host can reach"},
		"an endpoint in its tunnel": {`{}`, `{"PublicKey":"` + key + `","Endpoints":["10.5.12.1:5000"]}`, ours, "10.5.12.1:5000 is no address that another host can reach"},
		"an endpoint of DNS":        {`{}`, `{"PublicKey":"` + key + `","Endpoints":["192.0.2.1:53"]}`, ours, "Port 53 is one of the system's"},
		"two keys, and one link":    {`{"Mode":"auto"}`, ours, strings.ReplaceAll(ours, key, pskText), "BackendV6Data: PublicKey"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newWireGuard(t, tt.options, secretHost())
			_, objs, err := Reach(b, leaseOf("11", "", ""), leaseOf("12", tt.v4, tt.v6), nil)
			if err != nil {
				if strings.HasPrefix(tt.want, "\n") || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %q", err, tt.want)
				}
				return
			}
			var got strings.Builder
			for _, o := range objs {
				if p, ok := o.(kernel.WGPeer); ok {
					got.WriteString("\n" + p.String())
					for _, at := range p.Endpoints[1:] {
						if at.IsValid() {
							got.WriteString(" also " + at.String())
						}
					}
				}
			}
			if diff := cmp.Diff(strings.ReplaceAll(tt.want, "KEY", key), got.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What calls from behind NAT must go on calling, and what need not be quiet about it does not.
func TestWireGuardKeepalive(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		addr, public, peer string
		want               uint16
	}{
		{"192.0.2.1", "192.0.2.1", "198.51.100.1", 0},
		{"192.168.0.2", "192.0.2.1", "198.51.100.1", 25},
		{"192.168.0.2", "192.0.2.1", "192.0.2.1", 25}, // behind the same address
		{"192.168.0.2", "192.168.0.2", "198.51.100.1", 25},
		{"100.64.0.2", "100.64.0.2", "198.51.100.1", 25},
		{"192.168.0.2", "192.168.0.2", "192.168.0.3", 0},
	} {
		h := secretHost()
		h.Addrs = map[subnet.Family]netip.Addr{subnet.IPv4: netip.MustParseAddr(tt.addr)}
		h.PublicIPs = map[subnet.Family]netip.Addr{subnet.IPv4: netip.MustParseAddr(tt.public)}
		b := newWireGuard(t, `{}`, h).(wireguard)
		if got := b.keepalive(subnet.IPv4, netip.MustParseAddr(tt.peer)); got != tt.want {
			t.Errorf("%+v: keepalive %d", tt, got)
		}
	}
}

// A link of flannel's stays under its name if the host has its key, as peers know that.
func TestWireGuardTakesOver(t *testing.T) {
	t.Parallel()
	link := func(name string, key kernel.Secret) kernel.Existing {
		return kernel.Existing{Link: kernel.WireGuard{Name: name, Private: key}}
	}
	for name, tt := range map[string]struct {
		present []kernel.Existing
		former  []kernel.Object
		want    string
	}{
		"nothing there":       {nil, nil, "overlay-wg"},
		"flannel's":           {[]kernel.Existing{link("flannel-wg", kernel.Secret{8})}, nil, "flannel-wg"},
		"of another key":      {[]kernel.Existing{link("flannel-wg", kernel.Secret{24})}, nil, "overlay-wg"},
		"its own beside":      {[]kernel.Existing{link("flannel-wg", kernel.Secret{8}), link("overlay-wg", kernel.Secret{8})}, nil, "overlay-wg"},
		"after a new key":     {[]kernel.Existing{link("flannel-wg", kernel.Secret{24})}, []kernel.Object{kernel.WireGuard{Name: "flannel-wg"}}, "flannel-wg"},
		"somebody else's VPN": {[]kernel.Existing{link("wg0", kernel.Secret{8})}, nil, "overlay-wg"},
	} {
		h := secretHost()
		h.Present, h.Former = tt.present, tt.former
		if got := newWireGuard(t, `{"Mode":"auto"}`, h).(wireguard).links[subnet.IPv4].Name; got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestAlso(t *testing.T) {
	t.Parallel()
	data := AddAlso(json.RawMessage(`{"VNI":1}`), WireGuard, json.RawMessage(`{"PublicKey":"k","Port":1}`))
	if want := `{"VNI":1,"Also":{"Type":"wireguard","Data":{"PublicKey":"k","Port":1}}}`; string(data) != want {
		t.Errorf("%s, want %s", data, want)
	}
	l := leaseOf("12", string(data), string(data))
	l.Backend = "vxlan"
	got, ok := Also(l)
	if want := leaseOf("12", `{"PublicKey":"k","Port":1}`, `{"PublicKey":"k","Port":1}`); !ok || !got.Equal(want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, odd := range []string{``, `{"VNI":1}`, `{"Also":5}`, `{"Also":{}}`, `{"Also":{"Type":"vxlan"}}`, `{"Also":{"Type":"host-gw"}}`, `"Also"`} {
		l.Endpoints[0].Data = json.RawMessage(odd)
		if got, ok := Also(l); ok {
			t.Errorf("%s: %+v", odd, got)
		}
	}
	if got := string(AddAlso(nil, "host-gw", nil)); got != `{"Also":{"Type":"host-gw"}}` {
		t.Error(got)
	}
}

// Behind one NAT with a peer, a host calls it at its own address first: what is sent to the public one rarely comes back in.
func TestWireGuardBehindOneNAT(t *testing.T) {
	t.Parallel()
	host := secretHost()
	host.Addrs = map[subnet.Family]netip.Addr{subnet.IPv4: netip.MustParseAddr("192.168.9.4")}
	host.PublicIPs = map[subnet.Family]netip.Addr{subnet.IPv4: netip.MustParseAddr("203.0.113.9")}
	b := newWireGuard(t, `{"Type":"wireguard"}`, host)
	own := subnet.Endpoint{Subnet: netip.MustParsePrefix("10.5.1.0/24"), PublicIP: host.PublicIPs[subnet.IPv4]}
	for public, want := range map[string]string{
		"203.0.113.9":  "192.168.9.5:51820 203.0.113.9:51820",
		"203.0.113.10": "203.0.113.10:51820 192.168.9.5:51820",
	} {
		data := `{"PublicKey":"` + peerKey.String() + `","Port":51820,"Endpoints":["` + public + `:51820","192.168.9.5:51820"],"NAT":true}`
		peer := subnet.Endpoint{Subnet: netip.MustParsePrefix("10.5.2.0/24"), PublicIP: netip.MustParseAddr(public), Data: json.RawMessage(data)}
		_, objs, err := b.Peer(own, peer, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objs {
			if p, ok := o.(kernel.WGPeer); ok && p.Endpoints[0].String()+" "+p.Endpoints[1].String() != want {
				t.Errorf("at %s: %v, want %s", public, p.Endpoints, want)
			}
		}
	}
}
