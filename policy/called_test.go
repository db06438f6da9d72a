package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCalled(t *testing.T) {
	t.Parallel()
	compose := map[string]string{"com.docker.compose.service": "web", "com.docker.compose.project": "shop"}
	for _, c := range []struct {
		what   string
		name   string
		labels map[string]string
		want   []Called
	}{
		{"nothing", "", nil, nil},
		{"a dot", "web.1", nil, nil},
		{"a hyphen at an end", "web-", nil, nil},
		{"another at the other", "-web", nil, nil},
		{"a name too long", strings.Repeat("x", 64), nil, nil},
		{"what is no ASCII", "wéb", nil, nil},
		{"a byte that ends names in C", "web\x00", nil, nil},
		{"a service that is no label", "web", map[string]string{"com.docker.compose.service": "a.b"}, []Called{{"web", ""}}},
		{"63 bytes", strings.Repeat("x", 63), nil, []Called{{strings.Repeat("x", 63), ""}}},
		{"capitals", "Web", nil, []Called{{"web", ""}}},
		{"compose's first names", "shop_web_1", compose, []Called{{"shop_web_1", ""}, {"web", "compose shop"}}},
		{"the service's own", "WEB", compose, []Called{{"web", "compose shop"}}},
		{"Nomad", "web-1234abcd", map[string]string{"overlayd/nomad-group": "web", "overlayd/nomad-job": "a/b"}, []Called{{"web-1234abcd", ""}, {"web", "nomad a/b"}}},
	} {
		if diff := cmp.Diff(c.want, Identity{Name: c.name, Labels: c.labels}.Called()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
	}
}
