package subnet

import "testing"

func TestRedact(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		`{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"geheim","MTU":1400}}`: `{"Network":"10.5.0.0/16","Backend":{"MTU":1400,"PSK":"[removed]","Type":"wireguard"}}`,
		`{"network":"10.5.0.0/16","backend":{"type":"ipsec","psk":{"a":"geheim"}},"x":1}`:    `{"Network":"10.5.0.0/16","Backend":{"psk":"[removed]","type":"ipsec"},"x":1}`,
		`{ "Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"} }`:                         `{ "Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"} }`,
		`{"Network":"10.5.0.0/16"}`: `{"Network":"10.5.0.0/16"}`,
		`no JSON`:                   `no JSON`,
		``:                          ``,
	} {
		if got := string(Redact([]byte(config))); got != want {
			t.Errorf("Redact(%s) = %s, want %s", config, got, want)
		}
	}
}
