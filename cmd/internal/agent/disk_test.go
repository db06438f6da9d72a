package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/overlayd/overlayd/subnet/leasecache"
)

// TestStateOnAFullDisk: a host that is known starts on a disk that is full, or can only be read, and stays who it is.
func TestStateOnAFullDisk(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	mount := func(flags uintptr) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", flags, "size=64k"); err != nil {
			t.Fatal(err)
		}
	}
	mount(0)
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	first, err := OpenState(dir, "m", log)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	s, err := OpenState(dir, "m", log)
	if err != nil {
		t.Fatal("on a full disk: ", err)
	}
	if err := s.Renew(); !errors.Is(err, syscall.ENOSPC) || s.HostID != first.HostID {
		t.Errorf("Renew() on a full disk = %v, and the host is %s", err, s.HostID)
	}
	s.Close()
	mount(syscall.MS_REMOUNT | syscall.MS_RDONLY)
	if s, err = OpenState(dir, "m", log); err != nil {
		t.Fatal("on a disk that can only be read: ", err)
	}
	if s.HostID != first.HostID || s.VTEP != first.VTEP {
		t.Errorf("the host is %s, %s", s.HostID, s.VTEP)
	}
	if _, err := OpenState(dir, "m", log); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second one: %v", err)
	}
	s.Close()
}

// TestEmptyIdentity is what a power loss may leave. The leases that are remembered say who the host was.
func TestEmptyIdentity(t *testing.T) {
	t.Parallel()
	for name, remembered := range map[string]string{"leases are remembered": `{"Known":{"Host":"host-a"}}` + "\n", "nothing is": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, text := range map[string]string{"identity.json": "", leasecache.Name: remembered} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			s, err := OpenState(dir, "m", slog.New(slog.NewTextHandler(&out, nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if known := s.HostID == "host-a"; known != (remembered != "") || s.HostID == "" {
				t.Errorf("the host is %q", s.HostID)
			}
			if !strings.Contains(out.String(), filepath.Join(dir, "identity.json")+" is empty") {
				t.Errorf("log: %s", out.String())
			}
			if again, err := ReadState(dir, "m"); err != nil || again.HostID != s.HostID {
				t.Errorf("the next start: %v, %v", again, err)
			}
		})
	}
}
