package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOpenStateRefuses(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	t.Run("a directory in use", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		first, err := OpenState(dir, "m", log)
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		if _, err := OpenState(dir, "m", log); err == nil || !strings.Contains(err.Error(), "in use by another overlayd: ") {
			t.Errorf("OpenState() of a directory in use = %v", err)
		}
	})
	t.Run("a file in the way", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenState(path, "m", log); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("OpenState() of a file = %v, want an error that names it", err)
		}
	})
	for name, text := range map[string]string{
		"not JSON":  `{`,
		"no host":   `{"hostID":"","vtepMAC":"02:00:00:00:00:01"}`,
		"short MAC": `{"hostID":"x","vtepMAC":"02:00"}`,
		"long MAC":  `{"hostID":"x","vtepMAC":"02:00:00:00:00:01:02:03"}`,
	} {
		t.Run("an identity that is damaged: "+name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "identity.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenState(dir, "", log); err == nil || !strings.Contains(err.Error(), "remove it to get a new identity") {
				t.Errorf("OpenState() = %v, want what to do", err)
			}
		})
	}
}

func TestIdentityStaysWithTheMachine(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	open := func(machine string) State {
		t.Helper()
		s, err := OpenState(dir, machine, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		return *s
	}
	first, again, clone := open("one"), open("one"), open("two")
	if first.HostID != again.HostID || first.VTEP != again.VTEP {
		t.Errorf("identity changed over a restart: %+v, %+v", first, again)
	}
	if clone.HostID == first.HostID || clone.VTEP == first.VTEP {
		t.Errorf("a clone has the identity of its original: %+v", clone)
	}
	if first.VTEP[0]&3 != 2 {
		t.Errorf("VTEP MAC %s is not unicast and locally administered", first.VTEP)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory: mode %v (%v), want 0700", info.Mode(), err)
	}
	if _, err := ReadState(dir, "one"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadState() on a third machine = %v, want fs.ErrNotExist", err)
	}
}
