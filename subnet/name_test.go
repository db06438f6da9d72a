package subnet

import (
	"strings"
	"testing"
)

func TestValidNetworkName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "default", "all", "config", "subnets", "overlayd", "bpf", "dns", "endpoints", "networks",
		"-a", "a-", "1a", "A", "Blue", "a_b", "a.b", "a/b", "..", ".", "a b", "a\n", "\x00", "ä", "%s", strings.Repeat("a", 12), strings.Repeat("x", 1<<16),
	} {
		if err := ValidNetworkName(name); err == nil || strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 {
			t.Errorf("%.20q: %v: want one short line", name, err)
		}
	}
	for _, name := range []string{"a", "b2", "blue", "a-b", "a--b", "x0-0-0-0-0x", strings.Repeat("a", 11), "default1", "alls"} {
		if err := ValidNetworkName(name); err != nil {
			t.Error(err)
		}
	}
}
