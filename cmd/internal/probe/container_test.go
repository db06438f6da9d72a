package probe

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestClaim keeps host-local from giving an address away, and takes no address from it.
func TestClaim(t *testing.T) {
	t.Parallel()
	dir, subnet := t.TempDir(), netip.MustParsePrefix("10.5.1.0/24")
	for file, text := range map[string]string{
		"overlay/10.5.1.2": "c1\r\neth0", "overlay/10.5.1.254": "c2\r\neth0", "overlay/10.5.1.253": claimed, "overlay/10.5.1.252": claimed,
		"other/10.6.0.2": "c3\r\neth0", "empty/lock": "",
	} {
		path := filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * claimAge) // of a probe that was killed
	if err := os.Chtimes(filepath.Join(dir, "overlay/10.5.1.252"), old, old); err != nil {
		t.Fatal(err)
	}
	before, _ := filepath.Glob(dir + "/*/*")
	for addr, free := range map[string]bool{"10.5.1.254": false, "10.5.1.253": false, "10.5.1.252": true, "10.5.1.251": true} {
		undo, err := claim(dir, netip.MustParseAddr(addr), subnet)
		if free != (err == nil) || !free && !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v, want it free: %t", addr, err, free)
			continue
		}
		if free {
			if text, err := os.ReadFile(filepath.Join(dir, "overlay", addr)); err != nil || string(text) != claimed {
				t.Errorf("%s is not claimed: %v, %q", addr, err, text)
			}
			undo()
		}
	}
	after, _ := filepath.Glob(dir + "/*/*")
	var want []string
	for _, file := range before {
		if filepath.Base(file) != "10.5.1.252" {
			want = append(want, file)
		}
	}
	if diff := cmp.Diff(want, after); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if undo, err := claim(t.TempDir(), netip.MustParseAddr("10.5.1.254"), subnet); err != nil {
		t.Errorf("without host-local: %v", err)
	} else {
		undo()
	}
}

// TestGrown finds the rule of legacy iptables that has dropped what was sent, and not those that drop what others send.
func TestGrown(t *testing.T) {
	t.Parallel()
	before := map[string]int{"filter FORWARD DROP": 10, "filter INPUT DROP": 70, "raw PREROUTING -j DROP": 5}
	for rule, after := range map[string]map[string]int{
		"":                        {"filter FORWARD DROP": 11, "filter INPUT DROP": 70, "raw PREROUTING -j DROP": 5},
		"filter FORWARD DROP":     {"filter FORWARD DROP": 13, "filter INPUT DROP": 99, "raw PREROUTING -j DROP": 5},
		"mangle FORWARD -j DROP ": {"filter FORWARD DROP": 10, "mangle FORWARD -j DROP ": 2},
	} {
		if got := grown(before, after, 2); got != rule {
			t.Errorf("%q has dropped, want %q", got, rule)
		}
	}
}
