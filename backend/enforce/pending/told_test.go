package pending

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestTold ends the waiting when all addresses are told of, and never before.
func TestTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addrs := []netip.Addr{netip.MustParseAddr("10.5.1.2"), netip.MustParseAddr("fc00::2")}
	if err := Tell(dir, addrs[:1]); err != nil {
		t.Fatal(err)
	}
	if allTold(dir, addrs) {
		t.Error("one of two is told of, and that is taken for both")
	}
	go func() {
		time.Sleep(5 * time.Millisecond)
		_ = Tell(dir, addrs)
	}()
	if inForce, fail, err := WaitTold(t.Context(), dir, addrs); !inForce || fail || err != nil {
		t.Errorf("%v, %v, %v", inForce, fail, err)
	}
	Forget(dir, addrs)
	if left, err := os.ReadDir(filepath.Join(dir, "in-force")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
