package backend

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// host4 is a host of a network that has IPv4 alone.
func host4() Host {
	addrs := map[subnet.Family]netip.Addr{subnet.IPv4: netip.MustParseAddr("172.30.0.11")}
	return Host{Link: "eth0", MTU: 1500, Addrs: addrs, PublicIPs: addrs}
}

// without is a host whose kernel lacks a feature.
func without(f kernel.Feature) Host {
	h := host4()
	h.Lacks = func(asked kernel.Feature) error {
		if asked == f {
			return errors.New("no module " + string(f))
		}
		return nil
	}
	return h
}

func TestIPv4TunnelsRefuse(t *testing.T) {
	t.Parallel()
	narrow := host4()
	narrow.MTU = 590
	for name, tt := range map[string]struct {
		options string
		host    Host
		want    string
	}{
		"ipip with IPv6":       {`{"Type":"ipip"}`, testHost(), "Backend.Type: ipip carries IPv4 only, as flannel's does, and the network has IPv6: use vxlan, host-gw or wireguard"},
		"udp with IPv6":        {`{"Type":"udp"}`, testHost(), "Backend.Type: udp carries IPv4 only"},
		"no module":            {`{"Type":"ipip"}`, without(kernel.FeatureIPIP), "ipip: no module ipip; use another backend"},
		"a link too narrow":    {`{"Type":"ipip"}`, narrow, "the MTU of eth0, 590, leaves 570 bytes for containers: IPv4 needs 576"},
		"udp, link too narrow": {`{"Type":"udp"}`, narrow, "the MTU of eth0, 590, leaves 562 bytes"},
		"udp, port of 17 bits": {`{"Type":"udp","Port":70000}`, host4(), "Backend.Port: number 70000 is not a value of type uint16"},
		"ipip, routing a text": {`{"Type":"ipip","DirectRouting":"yes"}`, host4(), "Backend.DirectRouting: string is not a value of type bool"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := New(subnet.Backend{Type: typeOf(tt.options), Options: json.RawMessage(tt.options)}, tt.host)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New(%s) = %v, want an error with %q", tt.options, err, tt.want)
			}
		})
	}
	six := subnet.Network{Pools: []subnet.Pool{{Prefix: netip.MustParsePrefix("fd00::/48")}}, Backend: subnet.Backend{Type: "udp"}}
	if err := Validate(six); err == nil || !strings.Contains(err.Error(), "udp carries IPv4 only") {
		t.Errorf("Validate of udp with IPv6: %v", err)
	}
}

// TestIPv4Tunnels compares plans with the commands that an operator would type.
func TestIPv4Tunnels(t *testing.T) {
	t.Parallel()
	had := func(h Host, present []kernel.Existing, former ...kernel.Object) Host {
		h.Present, h.Former = present, former
		return h
	}
	flannels := kernel.IPIP{Name: "flannel.ipip", Local: netip.MustParseAddr("172.30.0.11"), MTU: 1480, Unfinished: true}
	theirs, away := flannels, flannels
	theirs.Name, away.Local = "theirs", netip.MustParseAddr("172.30.0.99")
	finished, unbound := host4(), host4()
	finished.Finished = true
	unbound.Link, unbound.Unbound = "lo", true
	const (
		ipipLink = "ip link add overlay.ipip up mtu 1480 type ipip local 172.30.0.11 ttl inherit nopmtudisc"
		fou      = " encap fou encap-sport auto encap-dport 8285 && ip fou add port 8285 ipproto 4 local 172.30.0.11"
		udpLink  = "ip link add overlay.udp up mtu 1472 type ipip local 172.30.0.11 ttl inherit nopmtudisc"
	)
	for name, tt := range map[string]struct {
		options string
		host    Host
		near    bool
		data    string
		path    string
		link    string
		rest    []string
		told    string
		err     string
	}{
		"ipip":                    {options: `{"Type":"ipip"}`, host: host4(), near: true, path: "ipip", link: ipipLink},
		"ipip, direct":            {options: `{"Type":"ipip","DirectRouting":true}`, host: host4(), near: true, path: "direct", rest: []string{"ip route replace 10.5.73.0/24 via 172.30.0.12 dev eth0"}},
		"ipip, direct but far":    {options: `{"Type":"ipip","DirectRouting":true}`, host: host4(), path: "ipip", link: ipipLink},
		"ipip, flannel's":         {options: `{"Type":"ipip"}`, host: had(host4(), []kernel.Existing{{Link: flannels}}), path: "ipip", link: strings.Replace(ipipLink, "overlay", "flannel", 1)},
		"ipip, flannel's of old":  {options: `{"Type":"ipip"}`, host: had(host4(), []kernel.Existing{{Link: away}}), path: "ipip", link: ipipLink},
		"ipip, flannel's changed": {options: `{"Type":"ipip"}`, host: had(host4(), []kernel.Existing{{Link: flannels, Foreign: "a remote"}}), path: "ipip", link: ipipLink},
		"ipip, another's":         {options: `{"Type":"ipip"}`, host: had(host4(), []kernel.Existing{{Link: theirs}}), path: "ipip", link: ipipLink},
		"udp":                     {options: `{"Type":"udp"}`, host: host4(), path: "udp", link: udpLink + " dev eth0" + fou, told: `{"Port":8285,"Unfinished":true}`},
		"udp, with flanneld":      {options: `{"Type":"udp"}`, host: finished, path: "udp", link: udpLink + " dev eth0" + fou + " && ethtool -K overlay.udp tx off", told: `{"Port":8285,"Unfinished":true}`},
		"udp, another port":       {options: `{"Type":"udp","Port":9}`, host: host4(), path: "udp", data: `{"Port":9}`, link: strings.ReplaceAll(udpLink+" dev eth0"+fou, "8285", "9"), told: `{"Port":9,"Unfinished":true}`},
		"udp, peer's port":        {options: `{"Type":"udp"}`, host: host4(), data: `{"Port":9}`, err: "BackendData: Port 9 is not the network's (8285): udp reaches hosts of one port"},
		"udp, garbage":            {options: `{"Type":"udp"}`, host: host4(), data: `[]`, err: "BackendData: "},
		"udp by any link":         {options: `{"Type":"udp"}`, host: unbound, path: "udp", link: udpLink + fou, told: `{"Port":8285,"Unfinished":true}`},
		"udp by any link, was ipip": {options: `{"Type":"udp"}`, host: had(unbound, nil, flannels), path: "udp",
			link: strings.Replace(udpLink, "overlay.udp", "flannel.ipip", 1) + fou, told: `{"Port":8285,"Unfinished":true}`},
		"udp in a process": {options: `{"Type":"udp"}`, host: without(kernel.FeatureFOU), path: "udp", told: `{"Port":8285}`,
			link: "overlayd-tun: udp link overlay.udp local 172.30.0.11 port 8285 mtu 1472",
			rest: []string{"overlayd-tun: udp link overlay.udp subnet 10.5.73.0/24 host 172.30.0.12", "ip route replace 10.5.73.0/24 dev overlay.udp"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := New(subnet.Backend{Type: typeOf(tt.options), Options: json.RawMessage(tt.options)}, tt.host)
			if err != nil {
				t.Fatal(err)
			}
			peer := subnet.Endpoint{Subnet: netip.MustParsePrefix("10.5.73.0/24"), PublicIP: netip.MustParseAddr("172.30.0.12")}
			if tt.data != "" {
				peer.Data = json.RawMessage(tt.data)
			}
			path, objs, err := b.Peer(ownEndpoint(subnet.IPv4), peer, tt.near)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("Peer() = %v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := tt.rest
			if tt.link != "" {
				link := strings.Fields(tt.link)[3]
				want = append([]string{tt.link, "ip address replace 10.5.72.0/32 dev " + link}, tt.rest...)
				if tt.rest == nil {
					want = append(want, "ip route replace 10.5.73.0/24 via 172.30.0.12 dev "+link+" onlink")
				}
			}
			var got []string
			for _, o := range objs {
				line, _, _ := strings.Cut(o.String(), " proto 111")
				got = append(got, line)
			}
			if diff := cmp.Diff(want, got); diff != "" || path != tt.path {
				t.Errorf("path %q, plan (-want +got):\n%s", path, diff)
			}
			if told := string(b.Data(subnet.IPv4)); tt.told != "" && told != tt.told {
				t.Errorf("tells %s, want %s", told, tt.told)
			}
		})
	}
}

// A host is to have inner checksums finished for the sake of flannel's hosts, and of those whose udp is a process's.
func TestTakesUnfinished(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]bool{"": false, `{"Port":8285}`: false, `[]`: false, `{"Port":8285,"Unfinished":true}`: true} {
		l := subnet.Lease{Endpoints: []subnet.Endpoint{{Subnet: netip.MustParsePrefix("10.5.73.0/24")}}}
		if data != "" {
			l.Endpoints[0].Data = json.RawMessage(data)
		}
		if got := TakesUnfinished(l); got != want {
			t.Errorf("of %s: %t", data, got)
		}
	}
}
