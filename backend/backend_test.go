package backend

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// testHost is a dual-stack host that others reach at its own addresses.
func testHost() Host {
	addrs := map[subnet.Family]netip.Addr{
		subnet.IPv4: netip.MustParseAddr("172.30.0.11"),
		subnet.IPv6: netip.MustParseAddr("fd00:172::11"),
	}
	return Host{Link: "eth0", MTU: 1500, Addrs: addrs, PublicIPs: addrs, VTEP: kernel.MAC{2, 0, 0, 0, 0, 0x11}}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	nat := testHost()
	nat.PublicIPs = map[subnet.Family]netip.Addr{subnet.IPv4: netip.MustParseAddr("203.0.113.9")}
	unbound := testHost()
	unbound.Link, unbound.Unbound = "lo", true
	narrow := testHost()
	narrow.MTU = 1300
	tooNarrow := testHost()
	tooNarrow.MTU = 1200
	tests := map[string]struct {
		options string
		host    Host
		want    string
	}{
		"a backend that is not ours":   {`{"Type":"geneve"}`, testHost(), `Backend.Type: "geneve" is not a backend of overlayd: use one of `},
		"a VNI of nothing":             {`{"Type":"vxlan","VNI":0}`, testHost(), "Backend.VNI: 0 is not in 1-9999999"},
		"a VNI of 25 bits":             {`{"Type":"vxlan","VNI":16777216}`, testHost(), "Backend.VNI: 16777216 is not in 1-9999999"},
		"a VNI too long for a name":    {`{"Type":"vxlan","VNI":10000000}`, testHost(), "Backend.VNI: 10000000 is not in 1-9999999"},
		"a VNI too long for overlay6.": {`{"Type":"vxlan","VNI":1000000}`, testHost(), "1000000 is not in 1-999999: its link would be overlay6.1000000, and names have 15 bytes"},
		"a port of 17 bits":            {`{"Type":"vxlan","Port":70000}`, testHost(), "Backend.Port: number 70000 is not a value of type uint16"},
		"a VNI in words":               {`{"Type":"vxlan","VNI":"one"}`, testHost(), "Backend.VNI: string is not a value of type uint32"},
		"an MTU below nothing":         {`{"Type":"vxlan","MTU":-1}`, testHost(), "Backend.MTU: -1 is not a number of bytes"},
		"an MTU too small":             {`{"Type":"vxlan","MTU":100}`, testHost(), "Backend.MTU: 100 leaves 50 bytes for containers: IPv4 needs 576"},
		"an MTU above the link's":      {`{"Type":"vxlan","MTU":9000}`, testHost(), "Backend.MTU: 9000 is more than eth0 carries (1500)"},
		"a link too narrow for IPv6":   {`{"Type":"vxlan"}`, narrow, "the MTU of eth0, 1300, leaves 1230 bytes for containers: IPv6 needs 1280"},
		"host-gw behind NAT":           {`{"Type":"host-gw"}`, nat, "host-gw: public IP 203.0.113.9 is not the address of eth0 (172.30.0.11)"},
		"host-gw with any uplink":      {`{"Type":"host-gw"}`, unbound, "host-gw: the address of this host is on lo: "},
		"ipsec":                        {`{"Type":"ipsec"}`, testHost(), `Backend.Type: "ipsec" of flannel's is not built: use "wireguard", which encrypts as well`},
		"a cloud":                      {`{"Type":"aws-vpc"}`, testHost(), `Backend.Type: "aws-vpc" of flannel's is not built: use "extension" with a SyncCommand`},
		"a command for a shell":        {`{"Type":"extension","SubnetAddCommand":"export A=1; x"}`, testHost(), `Backend.SubnetAddCommand: "A=1;" is for a shell`},
		"alloc too narrow":             {`{"Type":"alloc"}`, tooNarrow, "IPv6 needs 1280"},
		"options that are not a thing": {`[]`, testHost(), "Backend"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := New(subnet.Backend{Type: typeOf(tt.options), Options: json.RawMessage(tt.options)}, tt.host)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New(%s) = %v, want an error with %q", tt.options, err, tt.want)
			}
		})
	}
}

func typeOf(options string) string {
	var o struct{ Type string }
	if json.Unmarshal([]byte(options), &o) != nil {
		return "vxlan"
	}
	return o.Type
}

func TestValidateNamesUnknownKeys(t *testing.T) {
	t.Parallel()
	n := subnet.Network{
		Unknown: []string{"Subnets"},
		Backend: subnet.Backend{Type: "vxlan", Options: json.RawMessage(`{"type":"vxlan","vni":3,"DirectRoute":true}`)},
	}
	err := Validate(n)
	if want := "network config: unknown key Subnets, Backend.DirectRoute"; err == nil || err.Error() != want {
		t.Errorf("Validate() = %v, want %q", err, want)
	}
	n.Unknown, n.Backend.Options = nil, json.RawMessage(`{"TYPE":"vxlan","macPrefix":"0E-2A","directrouting":true}`)
	if err := Validate(n); err != nil {
		t.Errorf("Validate() of flannel's keys in any case = %v", err)
	}
}

// TestPlan compares plans with the commands that an operator would type.
func TestPlan(t *testing.T) {
	t.Parallel()
	const (
		vtep4 = `{"VNI":1,"VtepMAC":"02:00:00:00:00:12"}`
		peer4 = "10.5.73.0/24"
		peer6 = "fc00:5:0:73::/64"
	)
	tests := map[string]struct {
		options string
		peer    string // subnet
		public  string
		data    string
		near    bool
		path    string
		want    string
		err     string
	}{
		"vxlan, no MAC":            {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":1}`, err: `VtepMAC "" is not an Ethernet address`},
		"vxlan, zero MAC":          {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}`, err: "is not a unicast address"},
		"vxlan, group MAC":         {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}`, err: "is not a unicast address"},
		"vxlan, EUI-64":            {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":1,"VtepMAC":"02:00:00:00:00:00:00:01"}`, err: "is not an Ethernet address"},
		"vxlan, our own MAC":       {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":1,"VtepMAC":"02:00:00:00:00:11"}`, err: "is this host's own"},
		"vxlan, no data":           {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", err: "BackendData"},
		"vxlan, long VNI":          {options: `{"Type":"vxlan"}`, peer: peer6, public: "fd00:172::12", data: `{"VNI":1000000,"VtepMAC":"02:00:00:00:00:12"}`, err: "VNI 1000000 is not in 1-999999"},
		"vxlan, port of DNS":       {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":1,"VtepMAC":"02:00:00:00:00:12","Port":53}`, err: "Port 53 is one of the system's, and not the network's (8472)"},
		"vxlan, wild port":         {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":1,"VtepMAC":"02:00:00:00:00:12","Port":65536}`, err: "BackendData: "},
		"vxlan, wild VNI":          {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":99999999,"VtepMAC":"02:00:00:00:00:12"}`, err: "VNI 99999999"},
		"vxlan, no public IP":      {options: `{"Type":"vxlan"}`, peer: peer4, data: vtep4, err: "no public IP"},
		"host-gw, no public IP":    {options: `{"Type":"host-gw"}`, peer: peer4, err: "no public IP"},
		"host-gw, another segment": {options: `{"Type":"host-gw"}`, peer: peer4, public: "172.31.0.12", err: "host-gw: 172.31.0.12 is not in the segment of eth0"},
		"direct, no public IP":     {options: `{"Type":"vxlan","DirectRouting":true}`, peer: peer4, data: vtep4, near: true, err: "no public IP"},
		"vxlan":                    {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: vtep4, path: "vxlan", want: "vxlan4"},
		"vxlan, old flannel":       {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VtepMAC":"02:00:00:00:00:12"}`, path: "vxlan", want: "vxlan4"},
		"vxlan, IPv6":              {options: `{"Type":"vxlan"}`, peer: peer6, public: "fd00:172::12", data: vtep4, path: "vxlan", want: "vxlan6"},
		"vxlan, another VNI":       {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":9,"VtepMAC":"02:00:00:00:00:12"}`, path: "vxlan", want: "vxlan9"},
		"vxlan, our port":          {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":1,"VtepMAC":"02:00:00:00:00:12","Port":8472}`, path: "vxlan", want: "vxlan4"},
		"vxlan, another port":      {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":1,"VtepMAC":"02:00:00:00:00:12","Port":4789}`, path: "vxlan", want: "port4"},
		"vxlan, both other":        {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: `{"VNI":9,"VtepMAC":"02:00:00:00:00:12","Port":4789}`, path: "vxlan", want: "port9"},
		"vxlan, near, not direct":  {options: `{"Type":"vxlan"}`, peer: peer4, public: "172.30.0.12", data: vtep4, near: true, path: "vxlan", want: "vxlan4"},
		"direct, far":              {options: `{"Type":"vxlan","DirectRouting":true}`, peer: peer4, public: "172.30.0.12", data: vtep4, path: "vxlan", want: "vxlan4"},
		"direct, near":             {options: `{"Type":"vxlan","DirectRouting":true}`, peer: peer4, public: "172.30.0.12", data: vtep4, near: true, path: "direct", want: "plain4"},
		"host-gw":                  {options: `{"Type":"host-gw"}`, near: true, peer: peer4, public: "172.30.0.12", path: "host-gw", want: "plain4"},
		"host-gw, IPv6":            {options: `{"Type":"host-gw"}`, near: true, peer: peer6, public: "fd00:172::12", path: "host-gw", want: "plain6"},
		"alloc":                    {options: `{"Type":"alloc"}`, peer: peer4, public: "172.31.0.12", path: "others", want: "none"},
		"alloc, no public IP":      {options: `{"Type":"alloc"}`, peer: peer6, path: "others", want: "none"},
		"extension":                {options: `{"Type":"extension","SyncCommand":"/x"}`, peer: peer4, public: "172.31.0.12", data: `"anything"`, path: "extension", want: "none"},
	}
	golden := map[string][]kernel.Object{
		"vxlan4": append(vtepObjects("overlay.1", 1, subnet.IPv4), peerObjects("overlay.1", subnet.IPv4)...),
		"vxlan6": append(vtepObjects("overlay6.1", 1, subnet.IPv6), peerObjects("overlay6.1", subnet.IPv6)...),
		"vxlan9": append(vtepObjects("overlay.9", 9, subnet.IPv4), peerObjects("overlay.9", subnet.IPv4)...),
		"port4":  append(vtepObjects("overlay.1", 1, subnet.IPv4), toPort(peerObjects("overlay.1", subnet.IPv4), 4789)...),
		"port9":  append(vtepObjects("overlay.9", 9, subnet.IPv4), toPort(peerObjects("overlay.9", subnet.IPv4), 4789)...),
		"plain4": {kernel.Route{Dst: netip.MustParsePrefix(peer4), Via: netip.MustParseAddr("172.30.0.12"), Link: "eth0"}},
		"plain6": {kernel.Route{Dst: netip.MustParsePrefix(peer6), Via: netip.MustParseAddr("fd00:172::12"), Link: "eth0"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := New(subnet.Backend{Type: typeOf(tt.options), Options: json.RawMessage(tt.options)}, testHost())
			if err != nil {
				t.Fatal(err)
			}
			peer := subnet.Endpoint{Subnet: netip.MustParsePrefix(tt.peer)}
			if tt.public != "" {
				peer.PublicIP = netip.MustParseAddr(tt.public)
			}
			if tt.data != "" {
				peer.Data = json.RawMessage(tt.data)
			}
			path, objs, err := b.Peer(ownEndpoint(subnet.FamilyOf(peer.Subnet.Addr())), peer, tt.near)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("Peer() = %v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if path != tt.path {
				t.Errorf("path %q, want %q", path, tt.path)
			}
			if diff := cmp.Diff(commands(golden[tt.want]), commands(objs)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// commands shows objects as an operator reads them.
func commands(objs []kernel.Object) []string {
	var lines []string
	for _, o := range objs {
		lines = append(lines, fmt.Sprintf("%s %#v", o, o))
	}
	return lines
}

func ownEndpoint(f subnet.Family) subnet.Endpoint {
	if f == subnet.IPv4 {
		return subnet.Endpoint{Subnet: netip.MustParsePrefix("10.5.72.0/24")}
	}
	return subnet.Endpoint{Subnet: netip.MustParsePrefix("fc00:5:0:72::/64")}
}

func vtepObjects(link string, vni uint32, f subnet.Family) []kernel.Object {
	host := testHost()
	own := ownEndpoint(f).Subnet.Addr()
	return []kernel.Object{
		kernel.VXLAN{Name: link, VNI: vni, Port: 8472, Local: host.Addrs[f], Underlay: "eth0", MAC: host.VTEP, MTU: 1500 - overhead(f), ZeroChecksum: f == subnet.IPv6},
		kernel.Address{Link: link, Prefix: netip.PrefixFrom(own, f.Bits())},
	}
}

func peerObjects(link string, f subnet.Family) []kernel.Object {
	dst, public := netip.MustParsePrefix("10.5.73.0/24"), netip.MustParseAddr("172.30.0.12")
	if f == subnet.IPv6 {
		dst, public = netip.MustParsePrefix("fc00:5:0:73::/64"), netip.MustParseAddr("fd00:172::12")
	}
	mac := kernel.MAC{2, 0, 0, 0, 0, 0x12}
	return []kernel.Object{
		kernel.Neighbour{Link: link, IP: dst.Addr(), MAC: mac},
		kernel.FDB{Link: link, MAC: mac, Dst: public},
		kernel.Route{Dst: dst, Via: dst.Addr(), Link: link, OnLink: true},
	}
}

// toPort lets objects reach a peer that listens on another port than the link.
func toPort(objs []kernel.Object, port uint16) []kernel.Object {
	for i, o := range objs {
		if fdb, ok := o.(kernel.FDB); ok {
			fdb.Port = port
			objs[i] = fdb
		}
	}
	return objs
}

// Of alloc the own subnet is a route of its own, and a lease says nothing; of extension it says what a command printed.
func TestByOthers(t *testing.T) {
	t.Parallel()
	host := testHost()
	host.Told = json.RawMessage(`"key"`)
	for kind, tt := range map[string]struct{ data, local string }{
		"alloc":     {"", "ip route replace unreachable 10.5.72.0/24 proto 111 metric 16777215"},
		"extension": {`"key"`, ""},
	} {
		b, err := New(subnet.Backend{Type: kind, Options: json.RawMessage(`{"Type":"` + kind + `"}`)}, host)
		if err != nil {
			t.Fatal(err)
		}
		local := ""
		for _, o := range b.Local(ownEndpoint(subnet.IPv4)) {
			local += o.String()
		}
		if got := string(b.Data(subnet.IPv4)); got != tt.data || local != tt.local || b.MTU() != 1500 || !ByOthers(kind) {
			t.Errorf("%s: data %s, local %q, MTU %d", kind, got, local, b.MTU())
		}
	}
	if ByOthers("vxlan") {
		t.Error("vxlan is carried by others")
	}
}

func TestAnyUplink(t *testing.T) {
	t.Parallel()
	host := testHost()
	host.Link, host.Unbound = "lo", true
	b, err := New(subnet.Backend{Type: "vxlan", Options: json.RawMessage(`{"DirectRouting":true}`)}, host)
	if err != nil {
		t.Fatal(err)
	}
	link := b.Local(subnet.Endpoint{Subnet: netip.MustParsePrefix("10.5.72.0/24")})[0].String()
	if strings.Contains(link, " dev ") || !strings.Contains(link, " local 172.30.0.11 dstport ") || b.WantsNear() {
		t.Errorf("%s, direct routing %v: want no device, and none", link, b.WantsNear())
	}
}

func TestAdoptedLinkKeepsNameAndMAC(t *testing.T) {
	t.Parallel()
	host := testHost()
	mac := kernel.MAC{0x5e, 1, 2, 3, 4, 5}
	host.Present = []kernel.Existing{{Link: kernel.VXLAN{Name: "flannel.1", VNI: 1, Port: 8472, Local: host.Addrs[subnet.IPv4], MAC: mac}}}
	b, err := New(subnet.Backend{Type: "vxlan"}, host)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b.Data(subnet.IPv4)), `{"VNI":1,"VtepMAC":"5e:01:02:03:04:05","Port":8472}`; got != want {
		t.Errorf("Data() = %s, want %s", got, want)
	}
	if got, want := string(b.Data(subnet.IPv6)), `{"VNI":1,"VtepMAC":"02:00:00:00:00:11","Port":8472,"ZeroChecksum":true}`; got != want {
		t.Errorf("Data() of the other family = %s, want %s", got, want)
	}
	link, ok := b.Local(ownEndpoint(subnet.IPv4))[0].(kernel.VXLAN)
	if !ok || link.Name != "flannel.1" || link.MAC != mac {
		t.Errorf("Local() = %v, want flannel.1 with its MAC", link)
	}
}

// A link over IPv6 takes packets without a checksum if it was made so, which the lease says.
func TestZeroChecksumIsTheLinks(t *testing.T) {
	t.Parallel()
	host := testHost()
	was := kernel.VXLAN{Name: "flannel-v6.1", VNI: 1, Port: 8472, Local: host.Addrs[subnet.IPv6], MAC: kernel.MAC{0x5e}}
	now := was
	now.Name, now.ZeroChecksum = "overlay6.1", true
	other := was
	other.Name, other.VNI = "vxlan9", 9
	for name, tt := range map[string]struct {
		present, former []kernel.VXLAN
		want            bool
	}{
		"to be made":            {want: true},
		"there, flannel's":      {present: []kernel.VXLAN{was}},
		"there, made like that": {present: []kernel.VXLAN{now}, want: true},
		"had, and not so":       {former: []kernel.VXLAN{was}},
		"had":                   {former: []kernel.VXLAN{now}, want: true},
		// It could not have the port.
		"somebody else's has the port": {present: []kernel.VXLAN{other}},
	} {
		host := host
		for _, l := range tt.present {
			host.Present = append(host.Present, kernel.Existing{Link: l})
		}
		for _, l := range tt.former {
			host.Former = append(host.Former, l)
		}
		b, err := New(subnet.Backend{Type: "vxlan"}, host)
		if err != nil {
			t.Fatal(err)
		}
		link := b.Local(ownEndpoint(subnet.IPv6))[0].(kernel.VXLAN)
		_, told := Told(b.Data(subnet.IPv6))
		if _, told4 := Told(b.Data(subnet.IPv4)); link.ZeroChecksum != tt.want || told != tt.want || told4 {
			t.Errorf("%s: link %v, the lease says %s; want %v", name, link, b.Data(subnet.IPv6), tt.want)
		}
	}
}

// A host whose packets do not come from where it is reached says so, for peers to let them in.
func TestSource(t *testing.T) {
	t.Parallel()
	host := testHost()
	host.PublicIPs = map[subnet.Family]netip.Addr{subnet.IPv4: netip.MustParseAddr("203.0.113.9"), subnet.IPv6: host.Addrs[subnet.IPv6]}
	b, err := New(subnet.Backend{Type: "vxlan"}, host)
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[subnet.Family]netip.Addr{subnet.IPv4: host.Addrs[subnet.IPv4], subnet.IPv6: {}} {
		if got, _ := Told(b.Data(f)); got != want {
			t.Errorf("%s: packets come from %s, want %s", b.Data(f), got, want)
		}
	}
	for _, data := range []string{"", "null", `{"Source":7}`, `{"Source":"x"}`} {
		if got, _ := Told([]byte(data)); got.IsValid() {
			t.Errorf("%q: %s", data, got)
		}
	}
}

// A link that is there already is taken over, or is in the way, or is none of the network's business.
func TestTakesOver(t *testing.T) {
	t.Parallel()
	there := func(vni uint32, port uint16, local, foreign string) []kernel.Existing {
		return []kernel.Existing{{Link: kernel.VXLAN{Name: "x", VNI: vni, Port: port, Local: netip.MustParseAddr(local)}, Foreign: foreign}}
	}
	const own = "172.30.0.11"
	for name, tt := range map[string]struct {
		present []kernel.Existing
		name    string
		err     string
	}{
		"of a remote":              {there(1, 8472, own, "a group or remote"), "", "it has a group or remote"},
		"of a bridge":              {there(1, 8472, own, "a master"), "", "it has a master"},
		"external":                 {there(0, 8472, own, kernel.External), "", "x has UDP port 8472 for all VNIs"},
		"external on another port": {there(0, 4789, own, kernel.External), "overlay.1", ""},
		"none":                     {nil, "overlay.1", ""},
		"another VNI":              {there(2, 8472, own, "a master"), "overlay.1", ""},
		"another port":             {there(1, 4789, own, ""), "overlay.1", ""},
		"another family":           {there(1, 8472, "fd00::9", ""), "overlay.1", ""},
		"another address":          {there(1, 8472, "192.0.2.9", ""), "x", ""},
	} {
		host := testHost()
		delete(host.Addrs, subnet.IPv6)
		host.Present = tt.present
		b, err := New(subnet.Backend{Type: "vxlan"}, host)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %q", name, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := b.Local(ownEndpoint(subnet.IPv4))[0].(kernel.VXLAN).Name; got != tt.name {
			t.Errorf("%s: the link is %s, want %s", name, got, tt.name)
		}
	}
}

func TestMTU(t *testing.T) {
	t.Parallel()
	only4 := testHost()
	only4.Addrs = map[subnet.Family]netip.Addr{subnet.IPv4: only4.Addrs[subnet.IPv4]}
	for _, tt := range []struct {
		options string
		host    Host
		want    int
	}{
		{`{"Type":"vxlan"}`, only4, 1450},
		{`{"Type":"vxlan"}`, testHost(), 1430}, // the narrower of the two
		{`{"Type":"vxlan","MTU":1400}`, only4, 1350},
		{`{"Type":"host-gw"}`, testHost(), 1500},
	} {
		b, err := New(subnet.Backend{Type: typeOf(tt.options), Options: json.RawMessage(tt.options)}, tt.host)
		if err != nil {
			t.Fatal(err)
		}
		if b.MTU() != tt.want {
			t.Errorf("%s on %v: MTU %d, want %d", tt.options, tt.host.Addrs, b.MTU(), tt.want)
		}
	}
}

func TestLinkNamesFit(t *testing.T) {
	t.Parallel()
	for _, f := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
		if longest, next := linkName(f, maxVNI(f)), linkName(f, maxVNI(f)+1); len(longest) != nameSize || len(next) <= nameSize {
			t.Errorf("the largest VNI has link %q, the next %q: names have %d bytes", longest, next, nameSize)
		}
	}
}
