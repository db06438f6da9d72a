package bridge

import (
	"encoding/json"
	"strings"
	"testing"
)

const whole = `"cniVersion":"1.1.0","name":"n","type":"bridge","ipMasq":false,"mtu":1450,"isGateway":true,` +
	`"ipam":{"type":"host-local","ranges":[[{"subnet":"10.5.72.0/24"}]],"routes":[{"dst":"10.5.0.0/16"}]}`

func TestSupports(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		conf string
		want bool
	}{
		{`{}`, false},
		{`{` + whole + `,"vlan":7}`, false},
		{`{` + whole + `,"promiscMode":true}`, false},
		{`{` + whole + `,"enabledad":true}`, false},
		{`{` + whole + `,"isgateway":true}`, false}, // JSON would take it for isGateway
		{`{` + whole + `,"ipMasq":true}`, false},
		{`{` + whole + `,"type":"ptp"}`, false},
		{`{` + whole + `,"ipam":{"type":"dhcp"}}`, false},
		{`{` + whole + `,"ipam":{"type":"host-local","resolvConf":"/etc/resolv.conf"}}`, false},
		{`{` + whole + `}`, true},
		{`{` + whole + `,"bridge":"br0","isDefaultGateway":true,"hairpinMode":true,"forceAddress":true,"dns":{},"args":{}}`, true},
	} {
		var conf map[string]any
		if err := json.Unmarshal([]byte(tt.conf), &conf); err != nil {
			t.Fatal(err)
		}
		if got := Supports(conf); got != tt.want {
			t.Errorf("%s: %v", tt.conf, got)
		}
	}
}

// TestArgs attaches what CNI's library alone would refuse: the id of a Nomad job may have any character.
func TestArgs(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"IgnoreUnknown=true;NOMAD_JOB_ID=a=b;MAC=02:00:00:00:00:01", "NAMESPACE=dev;LABELS=app:web;NAME=a;PORTS=http:80", ";IgnoreUnknown=1;MAC=02:00:00:00:00:01;lone",
	} {
		a, err := New([]byte(`{`+whole+`}`), Container{ID: "c", IfName: "eth0", Args: args})
		if err != nil || strings.Contains(args, "MAC") && a.mac.String() != "02:00:00:00:00:01" {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestNewBad(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, conf, args, text string }{
		{"no JSON", `{`, "", "unexpected end"},
		{"MTU is text", `{` + whole + `,"mtu":"1450"}`, "", "mtu"},
		{"bridge is a number", `{` + whole + `,"bridge":7}`, "", "bridge"},
		{"no ipam", `{"name":"n","type":"bridge"}`, "", "ipam"},
		{"no ranges", `{"name":"n","ipam":{"type":"host-local"}}`, "", "ipam"},
		{"unknown argument", `{` + whole + `}`, "COLOUR=red", "CNI_ARGS"},
		{"MAC in CNI_ARGS", `{` + whole + `}`, "MAC=zz", "mac"},
		{"MAC from the runtime", `{` + whole + `,"runtimeConfig":{"mac":"02:aa"}}`, "", "mac"},
		{"address from the runtime", `{` + whole + `,"runtimeConfig":{"ips":["x"]}}`, "", "x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := New([]byte(tt.conf), Container{ID: "c", IfName: "eth0", Args: tt.args})
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v, want %q", err, tt.text)
			}
		})
	}
}

// The runtime's own word counts more than the user's, and that more than what the network's configuration says.
func TestWantedMAC(t *testing.T) {
	t.Parallel()
	conf := `{` + whole + `,"args":{"cni":{"mac":"02:00:00:00:00:02"}}`
	for _, tt := range []struct{ conf, args, want string }{
		{`{` + whole + `}`, "", ""},
		{`{` + whole + `}`, "IgnoreUnknown=1;MAC=02:00:00:00:00:01", "02:00:00:00:00:01"},
		{conf + `}`, "IgnoreUnknown=1;MAC=02:00:00:00:00:01", "02:00:00:00:00:02"},
		{conf + `,"runtimeConfig":{"mac":"02:00:00:00:00:03"}}`, "IgnoreUnknown=1;MAC=02:00:00:00:00:01", "02:00:00:00:00:03"},
	} {
		a, err := New([]byte(tt.conf), Container{ID: "c", IfName: "eth0", Args: tt.args})
		if err != nil {
			t.Fatal(err)
		}
		if a.mac.String() != tt.want {
			t.Errorf("%s, %s: %q, want %q", tt.conf, tt.args, a.mac, tt.want)
		}
	}
}
