package attachment

import (
	"os"
	"path/filepath"
	"testing"
)

// A namespace's name that was unmounted since it was listed, and is not removed yet, is nobody's namespace and no error.
func TestLivingPassesOverUnmounted(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to enter network namespaces")
	}
	name := filepath.Join(t.TempDir(), "name")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := search{seen: map[string]bool{}, failed: map[string]error{}}
	s.note("net:[1]", name)
	if len(s.failed) != 0 || len(s.seen) != 0 {
		t.Errorf("failed %v, seen %v", s.failed, s.seen)
	}
}
