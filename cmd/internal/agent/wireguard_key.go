package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

const (
	// WireGuardFile is in the state directory: the private key in base64, 44 bytes, as flannel keeps its own.
	WireGuardFile = "wireguard.key"
	// flannelKeyFile is where flanneld has its key, unless WIREGUARD_KEY_FILE in its environment says another place.
	flannelKeyFile = "/run/flannel/wgkey"
)

// needWireGuard has the host have a wireguard key, as networks of wireguard need it. Peers know that of a link which flanneld made,
// adopted, so it comes first: the host takes over such a link with its sessions. Then comes the host's own, that of flanneld's
// file, and a new one. One that is new to the host is kept on disk if the directory is locked.
func (s *State) needWireGuard(adopted kernel.Secret) error {
	none := kernel.Secret{}
	if adopted == s.spent || s.named { // flanneld's is the unnamed network's
		adopted = none
	}
	next := adopted
	if next == none {
		next = s.WireGuard
	}
	if next == none && !s.named {
		next, _ = flannelKey()
	}
	if next == none {
		next = kernel.NewSecret()
	}
	if next == s.WireGuard {
		return nil
	}
	return s.setWireGuard(next)
}

// setWireGuard makes a key the host's, unless it cannot be kept.
func (s *State) setWireGuard(key kernel.Secret) error {
	if s.lock != nil {
		if err := renameio.WriteFile(filepath.Join(s.dir, WireGuardFile), []byte(key.Base64()), 0o600); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
	}
	s.WireGuard = key
	return nil
}

// readWireGuard reads the key that the host had; none is no error.
func (s *State) readWireGuard() error {
	path := filepath.Join(s.dir, WireGuardFile)
	key, err := readKey(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("state directory: %s: %w; remove it to get a new key", path, err)
	}
	s.WireGuard = key
	return nil
}

// dropWireGuard has the host, which is another one now, get another key. A link that has the former one does not bring it back.
func (s *State) dropWireGuard() error {
	s.spent, s.WireGuard = s.WireGuard, kernel.Secret{}
	if err := os.Remove(filepath.Join(s.dir, WireGuardFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

func flannelKey() (kernel.Secret, error) {
	return readKey(cmp.Or(os.Getenv("WIREGUARD_KEY_FILE"), flannelKeyFile))
}

// readKey does not say what it read: it may be most of a key.
func readKey(path string) (kernel.Secret, error) {
	raw, err := subnet.ReadFile(path)
	if err != nil {
		return kernel.Secret{}, err
	}
	key, err := kernel.ParseSecret(strings.TrimSpace(string(raw)))
	if err != nil || key == (kernel.Secret{}) {
		return kernel.Secret{}, errors.New("no wireguard key: 32 bytes in base64, as wg genkey writes them")
	}
	return key, nil
}
