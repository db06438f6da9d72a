package subnet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestEnvOnAFullDisk keeps the file that is there, whole, and says the same each time; an empty one is named.
func TestEnvOnAFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "subnet.env")
	env, err := ParseEnv([]byte(dualEnv))
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteEnv(path, env); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	env.MTU--
	for range 3 {
		if err := WriteEnv(path, env); err == nil || err.Error() != "subnet env: "+path+": no space left on device" || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("WriteEnv() on a full disk = %v", err)
		}
	}
	if have, err := os.ReadFile(path); err != nil || string(have) != dualEnv {
		t.Errorf("the file is %q, %v", have, err)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 2 {
		t.Errorf("left: %v, %v", all, err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadEnv(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("ReadEnv() of an empty file = %v", err)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, "ballast")), WriteEnv(path, env)); err != nil {
		t.Fatal(err)
	}
	if have, err := ReadEnv(path); err != nil || have.MTU != env.MTU {
		t.Errorf("with room again: %v, %v", have, err)
	}
}
