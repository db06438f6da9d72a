package enrol

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Names in the state directory. All belong to the daemon's user.
const (
	// Dir holds what follows.
	Dir = "pki"
	// CAFile is the CA's certificate.
	CAFile = Dir + "/ca.crt"
	// AuthorityFile is the CA's certificate and key, on hosts that sign.
	AuthorityFile = Dir + "/ca.key"
	// HostFile is the host's certificate and key: one file, so that the two fit together whenever it is read, and are
	// replaced by one rename(2).
	HostFile = Dir + "/host.pem"
	// KeyFile is the key for which a host that joins has asked a certificate, until it has that.
	KeyFile = Dir + "/host.key"
	// JoinedFile is where the host joined, host:port.
	JoinedFile = Dir + "/joined"
)

// Files writes into a state directory. It belongs to a user who may be less than the one that writes: no link of it leads
// out of it.
type Files struct {
	Root     *os.Root
	UID, GID int // of the daemon's user; -1: who writes
}

// OpenFiles opens a state directory for the daemon's own use.
func OpenFiles(stateDir string) (Files, error) {
	root, err := os.OpenRoot(stateDir)
	return Files{root, -1, -1}, err
}

// Write makes or replaces a file at once, with a mode whatever the umask is, and says whether it was not that already.
func (f Files) Write(name string, data []byte, mode fs.FileMode) (changed bool, err error) {
	if old, err := f.Root.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	dir := filepath.Dir(name)
	if err := f.Root.Mkdir(dir, 0o700); err == nil {
		err = f.Root.Lchown(dir, f.UID, f.GID)
		if err != nil {
			return false, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	next := name + ".new"
	if err := f.Root.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a run that was killed
		return false, err
	}
	file, err := f.Root.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return false, err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Chmod(mode), file.Chown(f.UID, f.GID), file.Sync(), file.Close()); err != nil {
		return false, err
	}
	if err := f.Root.Rename(next, name); err != nil {
		return false, err
	}
	return true, f.sync(dir)
}

// sync has the names in a directory outlive a power loss.
func (f Files) sync(dir string) error {
	d, err := f.Root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
