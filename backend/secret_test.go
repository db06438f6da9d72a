package backend

import (
	"strconv"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/subnet"
)

// TestKeysOfOthersAreNotTold has configs of flannel's with a key in them, right and wrong: whatever is wrong, the error, which
// is logged, does not say the key.
func TestKeysOfOthersAreNotTold(t *testing.T) {
	t.Parallel()
	const backend = `{"Type":"ipsec","UDPEncap":true,"ESPProposal":"aes128gcm16-sha256","PSK":"geheim"}`
	good := `{"Network":"10.5.0.0/16","Backend":` + backend + `}`
	for _, text := range []string{
		good,
		strings.Replace(good, "ipsec", "wireguard", 1),
		strings.Replace(good, "ipsec", "vxlan", 1),
		strings.Replace(good, `"ipsec"`, `7`, 1),
		strings.Replace(good, `"ipsec"`, `{"PSK":"geheim"}`, 1),
		strings.Replace(good, `"geheim"`, `"geheim`, 1),
		strings.Replace(good, `"UDPEncap":true`, `"MTU":"geheim","VNI":{"PSK":"geheim"}`, 1),
		strings.Replace(good, `"Backend":`, `"Backend":"x",`, 1),
		`{"Network":"10.5.0.0/16","Backend":` + strconv.Quote(backend) + `}`,
		`{"Network":"10.5.0.0/16","Backend":[` + backend + `]}`,
		`{"Network":` + backend + `}`,
		`{"Network":` + strconv.Quote(backend) + `}`,
		`{"Network":"10.5.0.0/16","SubnetLen":` + backend + `}`,
		`{"Network":"10.5.0.0/16","EnableIPv6":` + strconv.Quote(backend) + `}`,
		`{"Network":"10.5.0.0/16","SubnetMin":` + strconv.Quote(backend) + `}`,
		strconv.Quote(good), "'" + good + "'", "[" + good + "]", good + good, good[:len(good)-1],
	} {
		raw, err := subnet.NetworkJSON(text)
		if err != nil {
			raw = []byte(text)
		}
		n, parseErr := subnet.ParseNetwork(raw)
		if parseErr == nil {
			parseErr = Validate(n)
		}
		if parseErr == nil {
			t.Errorf("%s is taken", text)
		}
		for _, err := range []error{err, parseErr, Check(n.Backend)} {
			if err != nil && strings.Contains(err.Error(), "geheim") {
				t.Errorf("of %s: %v", text, err)
			}
		}
	}
}
