package attachment

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKeyValidate(t *testing.T) {
	t.Parallel()
	for _, k := range []Key{
		{"", "c", "eth0"}, {"n", "", "eth0"}, {"n", "c", ""},
		{"../n", "c", "eth0"}, {"n/m", "c", "eth0"}, {".n", "c", "eth0"}, {"n\n", "c", "eth0"},
		{"n", "../c", "eth0"}, {"n", "..", "eth0"}, {"n", "c:d", "eth0"}, {"n", "c d", "eth0"}, {"n", "c\x00", "eth0"},
		{"n", "c", "."}, {"n", "c", ".."}, {"n", "c", "../eth0"}, {"n", "c", "eth 0"}, {"n", "c", "eth:0"},
		{"n", "c", "eth0\x00"}, {"n", "c", "abcdefghijklmnop"},
	} {
		if err := k.Validate(); err == nil {
			t.Errorf("%q: no error", k)
		}
	}
	good := Key{"n.1_-", "default-a.B_9", "abcdefghijklmno"}
	if err := good.Validate(); err != nil {
		t.Errorf("%v: %v", good, err)
	}
	if back, ok := parseFileName(good.Network, good.fileName()); !ok || back != good {
		t.Errorf("%v came back as %v, %v", good, back, ok)
	}
	for _, name := range []string{"x", "x.json", ":.json", "a:b", ".a:b.json123", "a:b:c.json"} {
		if k, ok := parseFileName("n", name); ok {
			t.Errorf("%q taken for %v", name, k)
		}
	}
}

func TestDecodeAttachmentBad(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, data, text string }{
		{"empty", ``, "unexpected end"},
		{"cut off", `{"version":1,`, "unexpected end"},
		{"zeros", strings.Repeat("\x00", 64), "invalid character"},
		{"null", `null`, "version: 0"},
		{"newer", `{"version":3,"network":"n","containerID":"c","ifName":"eth0"}`, "version: 3"},
		{"another's", `{"version":1,"network":"n","containerID":"d","ifName":"eth0"}`, "it is of"},
		{"no delegate", `{"version":1,"network":"n","containerID":"c","ifName":"eth0"}`, "delegate"},
		{"no type", `{"version":1,"network":"n","containerID":"c","ifName":"eth0","delegate":{}}`, "delegate.type"},
		{"a path", `{"version":1,"network":"n","containerID":"c","ifName":"eth0","delegate":{"type":"/bin/sh"}}`, "delegate.type"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := decode([]byte(tt.data), Key{"n", "c", "eth0"})
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v, want %q", err, tt.text)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args, caller string
		labels       map[string]string
	}{
		{"", "", map[string]string{}},
		{"IgnoreUnknown=1;K8S_POD_NAME=web;;x;IP=10.5.72.9", "kubernetes", map[string]string{"K8S_POD_NAME": "web"}},
		{"NOMAD_JOB_ID=a=b;NAMESPACE=prod;LABELS=app:web;PORTS=http:80/tcp", "nomad",
			map[string]string{"NOMAD_JOB_ID": "a=b", "NAMESPACE": "prod", "LABELS": "app:web", "PORTS": "http:80/tcp"}},
		{"NERDCTL_CNI_DHCP_HOSTNAME=h;MAC=x", "nerdctl", map[string]string{"NERDCTL_CNI_DHCP_HOSTNAME": "h"}},
	} {
		caller, labels := Identity(tt.args)
		if diff := cmp.Diff(tt.labels, labels); diff != "" || caller != tt.caller {
			t.Errorf("%s: caller %q, labels (-want +got):\n%s", tt.args, caller, diff)
		}
	}
}

func TestPoolName(t *testing.T) {
	t.Parallel()
	for want, subnets := range map[string][]netip.Prefix{
		"":                          nil,
		"overlayd-10.5.72.0-24":     {netip.MustParsePrefix("10.5.72.1/24"), netip.MustParsePrefix("fc00:7::1/64")},
		"overlayd-fc00-7-0-4c---64": {netip.MustParsePrefix("fc00:7:0:4c::1/64")},
	} {
		got := PoolName(subnets)
		if k := (Key{got, "c", "eth0"}); got != want || got != "" && k.Validate() != nil {
			t.Errorf("%v: %q, want %q", subnets, got, want)
		}
	}
}

func FuzzDecodeAttachment(f *testing.F) {
	f.Add([]byte(`{"version":1,"network":"n","containerID":"c","ifName":"eth0","subnets":["10.5.72.1/24"],` +
		`"created":"2026-01-02T03:04:05Z","delegate":{"type":"bridge"}}`))
	f.Add([]byte(`{"version":1,"delegate":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k := Key{"n", "c", "eth0"}
		a, err := decode(data, k)
		if err != nil {
			return
		}
		again, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(again, k); err != nil {
			t.Errorf("%s: taken once, then: %v", data, err)
		}
	})
}
