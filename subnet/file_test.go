package subnet

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// What another user can put into a directory, for root to read.
func TestReadFilePlanted(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		plant func(path string) error
		want  string
	}{
		"link": {func(path string) error { return os.Symlink("/etc/passwd", path) },
			" is a symbolic link, which is not followed: put the file itself there"},
		"FIFO":      {func(path string) error { return syscall.Mkfifo(path, 0o600) }, " is not a file of at most 65536 bytes"},
		"directory": {func(path string) error { return os.Mkdir(path, 0o700) }, " is not a file of at most 65536 bytes"},
		"huge": {func(path string) error { return os.WriteFile(path, make([]byte, maxDocument+1), 0o600) },
			" is not a file of at most 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "f")
			if err := tt.plant(path); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadFile(path); err == nil || err.Error() != path+tt.want {
				t.Errorf("%v, want %s%s", err, path, tt.want)
			}
			if _, err := ReadEnv(path); err == nil {
				t.Error("subnet.env: no error")
			}
		})
	}
	if _, err := ReadFile(filepath.Join(t.TempDir(), "f")); !os.IsNotExist(err) {
		t.Errorf("none: %v, want %v", err, fs.ErrNotExist)
	}
}
