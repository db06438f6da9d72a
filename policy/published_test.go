package policy_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/policy"
)

// TestPublishedReader is that nothing of one endpoint gets into the next.
func TestPublishedReader(t *testing.T) {
	t.Parallel()
	var r policy.PublishedReader
	const full = `{"ips":["10.0.0.1","fd00::1"],"name":"a","labels":{"app":"web","tier":"db"},"ports":[{"name":"web","port":80,"protocol":"TCP"}]}`
	for _, c := range []struct{ value, want string }{
		{`{"ips":["10.0.0.1"],"name":"b","labels":{"app":"cli"}}`, ""},
		{`{"ips":["10.0.0.1"],"name":"b","labels":null}`, ""},
		{`{"ips":["10.0.0.1"],"labels":{}}`, `name: "" is none`},
		{`{"name":"b"}`, "ips: 0 of them, where 1 to 16 are allowed"},
		{`{"ips":["10.0.0.1",null],"name":"b"}`, "ips: invalid IP is no container's"},
		{`{"ips":["10.0.0.1"],"name":"b","ports":[{"name":"web","protocol":"TCP"}]}`, "ports: 0 is no port"},
	} {
		if _, _, err := r.Read("ns/h/10.0.0.1", []byte(full)); err != nil {
			t.Fatal(err)
		}
		_, got, err := r.Read("ns/h/10.0.0.1", []byte(c.value))
		_, want, wantErr := policy.ParsePublished("ns/h/10.0.0.1", []byte(c.value))
		if err == nil && wantErr == nil {
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("%s (-alone +after another)\n%s", c.value, diff)
			}
		}
		if text := message(err); text != c.want || text != message(wantErr) {
			t.Errorf("%s: %q, alone %q, not %q", c.value, text, message(wantErr), c.want)
		}
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
