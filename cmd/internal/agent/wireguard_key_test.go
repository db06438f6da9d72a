package agent

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend/kernel"
)

// keyRig is a state directory in which a test looks after the wireguard key.
type keyRig struct {
	t   *testing.T
	dir string
	log bytes.Buffer
}

func newKeyRig(t *testing.T) *keyRig {
	t.Setenv("WIREGUARD_KEY_FILE", filepath.Join(t.TempDir(), "wgkey")) // this machine's may have one
	return &keyRig{t: t, dir: filepath.Join(t.TempDir(), "state")}
}

// open opens the directory as a machine, and closes it when the test has looked.
func (r *keyRig) open(machine string) *State {
	r.t.Helper()
	s, err := OpenState(r.dir, machine, slog.New(slog.NewTextHandler(&r.log, nil)))
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *keyRig) need(s *State, adopted kernel.Secret) kernel.Secret {
	r.t.Helper()
	if err := s.needWireGuard(adopted); err != nil {
		r.t.Fatal(err)
	}
	return s.WireGuard
}

func (r *keyRig) file() string { return filepath.Join(r.dir, WireGuardFile) }

// A host has no wireguard key before it needs one, and then the same for good; a copy of its state directory, and who takes another
// identity, gets another.
func TestWireGuardKeyStaysWithTheHost(t *testing.T) {
	r := newKeyRig(t)
	s := r.open("one")
	if _, err := os.Stat(r.file()); err == nil || s.WireGuard != (kernel.Secret{}) {
		t.Error("there is a key that nobody needs")
	}
	first := r.need(s, kernel.Secret{})
	s.Close()
	info, err := os.Stat(r.file())
	if err != nil || info.Mode() != 0o600 || info.Size() != 44 {
		t.Errorf("the file: %v, %v", info, err)
	}
	s = r.open("one")
	if again := r.need(s, kernel.Secret{}); again != first {
		t.Error("another key after a restart")
	}
	s.Close()
	read, err := ReadState(r.dir, "one")
	if err != nil || read.WireGuard != first {
		t.Errorf("ReadState() has another key, or %v", err)
	}

	s = r.open("two")
	copied := r.need(s, kernel.Secret{})
	if copied == first {
		t.Error("a copy of the state directory has the key of its original")
	}
	if err := s.Renew(); err != nil {
		t.Fatal(err)
	}
	if renewed := r.need(s, copied); renewed == copied { // a link may still have it
		t.Error("another identity with the key of before")
	}
	s.Close()
	if strings.Contains(r.log.String(), first.Base64()) || strings.Contains(r.log.String(), copied.Base64()) {
		t.Error("a key is logged")
	}
}

// The key of flanneld's link is the host's, whatever it had before; that of flanneld's file is, where it has none.
func TestWireGuardKeyOfFlannel(t *testing.T) {
	r := newKeyRig(t)
	ofFile, ofLink := kernel.NewSecret(), kernel.NewSecret()
	if err := os.WriteFile(os.Getenv("WIREGUARD_KEY_FILE"), []byte(ofFile.Base64()), 0o400); err != nil {
		t.Fatal(err)
	}
	s := r.open("one")
	if got := r.need(s, kernel.Secret{}); got != ofFile {
		t.Error("the key is not that of flanneld's file")
	}
	if got := r.need(s, ofLink); got != ofLink {
		t.Error("the key is not that of flanneld's link")
	}
	// While the kernel has not followed, the link has the key of before.
	s.spent = ofLink
	if err := s.setWireGuard(ofFile); err != nil {
		t.Fatal(err)
	}
	if got := r.need(s, ofLink); got != ofFile {
		t.Error("another key is undone by the link that has the one of before")
	}
	s.Close()
	s = r.open("one")
	defer s.Close()
	if got := r.need(s, ofLink); got != ofLink {
		t.Error("the key is not that of flanneld's link, after a start")
	}
	if got := r.need(s, kernel.Secret{}); got != ofLink {
		t.Error("what was taken over is forgotten")
	}
}

// Who only looks writes nothing.
func TestWireGuardKeyIsNotWrittenWithoutLock(t *testing.T) {
	r := newKeyRig(t)
	r.open("one").Close()
	s, err := ReadState(r.dir, "one")
	if err != nil {
		t.Fatal(err)
	}
	r.need(s, kernel.Secret{})
	if _, err := os.Stat(r.file()); err == nil {
		t.Error("a file was written")
	}
}

// A key file that makes no sense is not replaced in silence, and the error does not say what is in it.
func TestWireGuardKeyDamaged(t *testing.T) {
	r := newKeyRig(t)
	for _, text := range []string{"", "\n", "geheim", kernel.NewSecret().Base64()[:43], (kernel.Secret{}).Base64(), strings.Repeat("A", 1<<20)} {
		os.RemoveAll(r.dir)
		r.open("one").Close()
		if err := os.WriteFile(r.file(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenState(r.dir, "one", slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), r.file()) || len(err.Error()) > 300 || len(text) > 5 && strings.Contains(err.Error(), text) {
			t.Errorf("OpenState() with %.50q = %v", text, err)
		}
	}
	// flanneld's is no reason not to start.
	if err := os.WriteFile(os.Getenv("WIREGUARD_KEY_FILE"), []byte("geheim"), 0o400); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(r.dir)
	s := r.open("one")
	defer s.Close()
	if r.need(s, kernel.Secret{}) == (kernel.Secret{}) {
		t.Error("no key")
	}
}

// Where the key cannot be written, the host keeps the one that it has.
func TestWireGuardKeyOnFullDisk(t *testing.T) {
	r := newKeyRig(t)
	s := r.open("one")
	defer s.Close()
	before := r.need(s, kernel.Secret{})
	s.dir = filepath.Join(s.dir, "gone")
	if err := s.setWireGuard(kernel.NewSecret()); err == nil || s.WireGuard != before {
		t.Errorf("setWireGuard() = %v, and the key is another: %t", err, s.WireGuard != before)
	}
}
