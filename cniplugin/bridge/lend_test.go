package bridge

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLend has addresses reserved one at a time, and passed on between owners whose names are longer and shorter.
func TestLend(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	conf := strings.Replace(whole, `"type":"host-local"`, `"type":"host-local","dataDir":"`+dir+`"`, 1)
	lender, short, long := Owner{"docker", "requested"}, Owner{"c", "e"}, Owner{strings.Repeat("ab", 32), "eth0"}
	a, err := New([]byte("{"+conf+"}"), Container{ID: lender.ContainerID, IfName: lender.IfName})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Reserve(t.Context(), true, netip.Addr{}); err == nil || !strings.Contains(err.Error(), "no IPv6 subnet") {
		t.Errorf("an address of a family that is not there: %s, %v", got, err)
	}
	if got, err := a.Reserve(t.Context(), false, netip.MustParseAddr("10.9.9.9")); err == nil || !strings.Contains(err.Error(), "is not of this host's subnet") {
		t.Errorf("an address of elsewhere: %s, %v", got, err)
	}
	wanted := netip.MustParseAddr("10.5.72.77")
	if got, err := a.Reserve(t.Context(), false, wanted); err != nil || got.String() != "10.5.72.77/24" {
		t.Fatalf("%s, %v", got, err)
	}
	if got, err := a.Reserve(t.Context(), false, wanted); !NoAddress(err) {
		t.Errorf("once more: %s, %v", got, err)
	}
	for _, step := range []struct {
		from, to Owner
		want     bool
	}{
		{short, long, false}, {lender, long, true}, {lender, long, true}, {lender, Owner{}, false}, {long, short, true}, {long, lender, false},
		{short, lender, true}, {long, Owner{}, false}, {lender, Owner{}, true}, {lender, Owner{}, true}, {lender, short, false},
	} {
		if got, err := Pass(t.Context(), dir, "n", wanted, step.from, step.to); err != nil || got != step.want {
			t.Errorf("%v to %v: %t, %v; want %t", step.from, step.to, got, err, step.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "n", wanted.String())); !os.IsNotExist(err) {
		t.Errorf("it is still reserved: %v", err)
	}
}
