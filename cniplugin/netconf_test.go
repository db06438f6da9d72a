package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/subnet"
)

func TestParseNetConfBad(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, conf string
		code       uint
		text       string
	}{
		{"empty", ``, types.ErrDecodingFailure, "network configuration"},
		{"cut off", `{"name":"n"`, types.ErrDecodingFailure, "network configuration"},
		{"list", `[]`, types.ErrDecodingFailure, "network configuration"},
		{"delegate is text", `{"delegate":"bridge"}`, types.ErrDecodingFailure, "delegate"},
		{"delegate's key outside", `{"mtu":1400}`, types.ErrUnsupportedField, `mtu: unknown key; a key of the delegate belongs in "delegate"`},
		{"typing error", `{"subnetFiel":"/x"}`, types.ErrUnsupportedField, "subnetFiel"},
		{"relative subnetFile", `{"subnetFile":"subnet.env"}`, types.ErrInvalidNetworkConfig, "subnetFile: must be an absolute path"},
		{"a network of another meaning", `{"network":"config"}`, types.ErrInvalidNetworkConfig, "has another meaning"},
		{"network is a path", `{"network":"../../etc"}`, types.ErrInvalidNetworkConfig, "at most 11 lower case letters"},
		{"network is a number", `{"network":7}`, types.ErrDecodingFailure, "network"},
		{"relative dataDir", `{"dataDir":"../x"}`, types.ErrInvalidNetworkConfig, "dataDir: must be an absolute path"},
		{"delegate.name", `{"delegate":{"name":"x"}}`, types.ErrInvalidNetworkConfig, "delegate.name"},
		{"delegate.ipam", `{"delegate":{"ipam":{}}}`, types.ErrInvalidNetworkConfig, "delegate.ipam"},
		{"misspelt key of the delegate", `{"delegate":{"hairpinmode":true}}`, types.ErrUnsupportedField, "delegate.hairpinmode: unknown key; bridge has"},
		{"of the delegate that is named", `{"delegate":{"type":"bridge","isDefaultGatway":true}}`, types.ErrUnsupportedField, "delegate.isDefaultGatway"},
		{"misspelt key of ipam", `{"ipam":{"datadir":"/x"}}`, types.ErrUnsupportedField, "ipam.datadir: unknown key; host-local has"},
		{"type is a number", `{"delegate":{"type":1}}`, types.ErrInvalidNetworkConfig, "delegate.type"},
		{"type is empty", `{"delegate":{"type":""}}`, types.ErrInvalidNetworkConfig, "delegate.type"},
		{"type is a path", `{"delegate":{"type":"../../bin/sh"}}`, types.ErrInvalidNetworkConfig, "delegate.type"},
		{"itself", `{"type":"overlay","delegate":{"type":"overlay"}}`, types.ErrInvalidNetworkConfig, "without end"},
		{"ipam.type", `{"ipam":{"type":{}}}`, types.ErrInvalidNetworkConfig, "ipam.type"},
		{"ipam.subnet", `{"ipam":{"subnet":"10.9.0.0/24"}}`, types.ErrInvalidNetworkConfig, "ipam.subnet"},
		{"ipam.ranges", `{"ipam":{"ranges":[]}}`, types.ErrInvalidNetworkConfig, "ipam.ranges"},
		{"ipam.routes", `{"ipam":{"routes":{}}}`, types.ErrInvalidNetworkConfig, "ipam.routes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := parseNetConf([]byte(tt.conf))
			wantError(t, err, tt.code, tt.text)
		})
	}
}

func TestRender(t *testing.T) {
	t.Parallel()
	v4 := subnet.Env{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.1.74.1/24")},
		MTU:      1472,
	}
	dual := subnet.Env{
		Networks: append(v4.Networks, netip.MustParsePrefix("fc00:7::/48")),
		Subnets:  append(v4.Subnets, netip.MustParsePrefix("fc00:7:0:4c::1/64")),
		MTU:      1450,
		IPMasq:   true,
	}
	for _, tt := range []struct {
		name, conf string
		lease      subnet.Env
		want       string
	}{
		{
			"flannel's but for ipMasq", `{"cniVersion":"1.0.0","name":"n","type":"overlay"}`, v4,
			`{"cniVersion":"1.0.0","forceAddress":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.74.0/24"}]],` +
				`"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},` +
				`"isGateway":true,"mtu":1472,"name":"overlayd-10.1.74.0-24","type":"bridge"}`,
		},
		{
			"dual stack", `{"cniVersion":"1.0.0","name":"n","delegate":{"hairpinMode":true,"isDefaultGateway":true}}`, dual,
			`{"cniVersion":"1.0.0","forceAddress":true,"hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.74.0/24"}],` +
				`[{"subnet":"fc00:7:0:4c::/64"}]],"routes":[{"dst":"10.1.0.0/16"},{"dst":"fc00:7::/48"}],` +
				`"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"overlayd-10.1.74.0-24","type":"bridge"}`,
		},
		{
			"what is given stays", `{"cniVersion":"1.0.0","name":"n","delegate":{"bridge":"br1","isGateway":false,` +
				`"ipMasq":true,"mtu":1300,"vlan":12345678901234567890},"ipam":{"dataDir":"/d","routes":[{"dst":"0.0.0.0/0"},` +
				`{"dst":"10.1.0.0/16"}]}}`, v4,
			`{"bridge":"br1","cniVersion":"1.0.0","forceAddress":true,"ipMasq":true,"ipam":{"dataDir":"/d","ranges":[[{"subnet":"10.1.74.0/24"}]],` +
				`"routes":[{"dst":"0.0.0.0/0"},{"dst":"10.1.0.0/16"}],"type":"host-local"},` +
				`"isGateway":false,"mtu":1300,"name":"overlayd-10.1.74.0-24","type":"bridge","vlan":12345678901234567890}`,
		},
		{
			"a network that has a name", `{"cniVersion":"1.0.0","name":"n","network":"red"}`, v4,
			`{"bridge":"ov-red","cniVersion":"1.0.0","forceAddress":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.74.0/24"}]],` +
				`"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},` +
				`"isGateway":true,"mtu":1472,"name":"overlayd-10.1.74.0-24","type":"bridge"}`,
		},
		{
			"another delegate, what the runtime adds",
			`{"cniVersion":"1.0.0","name":"n","delegate":{"type":"ptp"},"args":{"cni":{"ips":["10.1.74.9"]}},` +
				`"capabilities":{"mac":true},"dns":{"domain":"x"},"prevResult":{},"cni.dev/x":1,` +
				`"runtimeConfig":{"mac":"02:00:00:00:00:01"},"ipam":{"type":"static"}}`, subnet.Env{
				Networks: v4.Networks, Subnets: v4.Subnets,
			},
			`{"args":{"cni":{"ips":["10.1.74.9"]}},"cniVersion":"1.0.0","dns":{"domain":"x"},"ipMasq":false,` +
				`"ipam":{"routes":[{"dst":"10.1.0.0/16"}],"type":"static"},"name":"n",` +
				`"runtimeConfig":{"mac":"02:00:00:00:00:01"},"type":"ptp"}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conf, err := parseNetConf([]byte(tt.conf))
			if err != nil {
				t.Fatal(err)
			}
			got, err := conf.render(tt.lease)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("delegate's configuration (-want +got):\n%s", diff)
			}
		})
	}
}

// What flannel's plugin hands on, what bridge and host-local of the pinned version have, and what CNI lets stand everywhere.
func TestParseNetConfAll(t *testing.T) {
	t.Parallel()
	for _, conf := range []string{
		`{"cniVersion":"0.3.1","name":"n","type":"overlay","disableCheck":true,"capabilities":{"ips":true},"args":{},"dns":{},
			"prevResult":{},"runtimeConfig":{},"cni.dev/valid-attachments":[],"example.org/x":1}`,
		`{"delegate":{"bridge":"b","isGateway":true,"isDefaultGateway":true,"forceAddress":true,"ipMasq":true,
			"ipMasqBackend":"nftables","mtu":1,"hairpinMode":true,"promiscMode":true,"vlan":1,"vlanTrunk":[],
			"preserveDefaultVlan":true,"macspoofchk":true,"enabledad":true,"disableContainerInterface":true,
			"portIsolation":true,"capabilities":{"mac":true},"args":{},"dns":{},"runtimeConfig":{},"example.org/x":1}}`,
		`{"ipam":{"type":"host-local","routes":[],"dataDir":"/x","resolvConf":"/x","example.org/x":1}}`,
		`{"delegate":{"type":"macvlan","master":"eth0"},"ipam":{"type":"static","addresses":[]}}`,
	} {
		if _, err := parseNetConf([]byte(conf)); err != nil {
			t.Errorf("%v in %s", err, conf)
		}
	}
}

func TestSubnetFile(t *testing.T) {
	t.Parallel()
	for conf, want := range map[string]string{
		`{}`:                                    "/run/overlayd/subnet.env",
		`{"network":"default"}`:                 "/run/overlayd/subnet.env",
		`{"network":"red"}`:                     "/run/overlayd/red/subnet.env",
		`{"network":"red","subnetFile":"/x/y"}`: "/x/y",
	} {
		c, err := parseNetConf([]byte(conf))
		if err != nil || c.SubnetFile != want {
			t.Errorf("%s: %s, %v, want %s", conf, c.SubnetFile, err, want)
		}
	}
}

// The file that is shipped must be one that libcni and the plugin take.
func TestShippedConflist(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join("..", "etc", "10-overlay.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	if list.Name != "overlay" || list.CNIVersion != "1.0.0" || len(list.Plugins) != 2 {
		t.Errorf("name %s, version %s, %d plugins", list.Name, list.CNIVersion, len(list.Plugins))
	}
	conf, err := parseNetConf(list.Plugins[0].Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if conf.SubnetFile != "/run/overlayd/subnet.env" || conf.DataDir != defaultDataDir {
		t.Errorf("subnetFile %s, dataDir %s", conf.SubnetFile, conf.DataDir)
	}

	forNomad, err := os.ReadFile(filepath.Join("..", "etc", "nomad", "10-overlay.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	if want := bytes.Replace(data, []byte("[\n"), []byte("[\n    {\n      \"type\": \"loopback\"\n    },\n"), 1); !bytes.Equal(forNomad, want) {
		t.Errorf("Nomad's is not the same with loopback first:\n%s", forNomad)
	}
}

func FuzzParseNetConf(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","type":"overlay","delegate":{"mtu":1},"ipam":{"routes":[{"dst":"::/0"}]}}`))
	f.Add([]byte(`{"name":"n","delegate":null,"ipam":null,"args":null,"cni.dev/attachments":[{"containerID":"x"}]}`))
	lease := subnet.Env{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.1.74.1/24")},
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		conf, err := parseNetConf(data)
		if err != nil {
			return
		}
		out, err := conf.render(lease)
		if err != nil {
			t.Fatalf("valid, but cannot be rendered: %v", err)
		}
		var delegate struct {
			Name, Type string
			IPAM       struct{ Type string }
		}
		if err := json.Unmarshal(out, &delegate); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if delegate.Name == "" && conf.Name != "" || delegate.Type == "" || delegate.IPAM.Type == "" {
			t.Errorf("incomplete: %s", out)
		}
	})
}
