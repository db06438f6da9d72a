package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/renameio/v2"
)

// errUnusable marks an attachment's file that is there but says nothing usable. Files are replaced atomically, so
// that takes a broken disk, a hand, or a newer version of this plugin.
var errUnusable = errors.New("not a usable attachment file")

// store holds the attachments: <dataDir>/<network>/<container id>:<interface>.json. All access goes through an
// [os.Root], so that no name, however odd, leads out of the directory.
type store struct {
	dir  string
	root *os.Root
	lock *os.File // the directory itself, under flock
}

// createStore is openStore which makes the directory, for root only, if there is none.
func createStore(ctx context.Context, dir string, mode int) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	return openStore(ctx, dir, mode)
}

// openStore opens the store and locks it: syscall.LOCK_SH for work on one attachment, which may go on beside work on
// others, LOCK_EX for GC, which must not take an attachment that is being made for one that is left over.
// The error is [fs.ErrNotExist] if there is no such directory.
func openStore(ctx context.Context, dir string, mode int) (*store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("dataDir: %w", err)
	}
	lock, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dataDir: %w", err), root.Close())
	}
	s := &store{dir: dir, root: root, lock: lock}
	if err := flock(ctx, lock, mode); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// flock waits for the lock until ctx ends.
func flock(ctx context.Context, f *os.File, mode int) error {
	for {
		err := syscall.Flock(int(f.Fd()), mode|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return failf(types.ErrTryAgainLater, "dataDir: %s is locked by another overlay plugin", f.Name())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// close releases the lock.
func (s *store) close() error {
	return errors.Join(s.lock.Close(), s.root.Close())
}

// path is that of an attachment's file, for people.
func (s *store) path(k key) string {
	return filepath.Join(s.dir, k.network, k.fileName())
}

// save writes the attachment's file, whole or not at all, onto the disk.
func (s *store) save(a attachment) error {
	k := a.key()
	if err := k.validate(); err != nil {
		return err
	}
	data, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode the attachment: %w", err)
	}
	if err := s.root.MkdirAll(k.network, 0o700); err != nil {
		return failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	name := filepath.Join(k.network, k.fileName())
	err = renameio.WriteFile(name, data, 0o600, renameio.WithRoot(s.root), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return failf(types.ErrIOFailure, "dataDir: write %s: %v", s.path(k), err)
	}
	return nil
}

// load reads an attachment. The error is [fs.ErrNotExist] if there is none of that name, errUnusable if its file
// cannot be understood.
func (s *store) load(k key) (attachment, error) {
	if err := k.validate(); err != nil {
		return attachment{}, err
	}
	data, err := s.root.ReadFile(filepath.Join(k.network, k.fileName()))
	if err != nil {
		return attachment{}, fmt.Errorf("dataDir: %w", err)
	}
	a, err := decodeAttachment(data, k)
	if err != nil {
		return attachment{}, fmt.Errorf("%s: %w: %w", s.path(k), errUnusable, err)
	}
	return a, nil
}

// remove removes an attachment's file; it may be gone already.
func (s *store) remove(k key) error {
	if err := k.validate(); err != nil {
		return err
	}
	err := s.root.Remove(filepath.Join(k.network, k.fileName()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	return nil
}

// list returns the attachments of a network, by file name; their files may be unusable.
func (s *store) list(network string) ([]key, error) {
	entries, err := fs.ReadDir(s.root.FS(), network)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	var keys []key
	for _, e := range entries {
		if k, ok := parseFileName(network, e.Name()); ok {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// sweep removes the temporary files of plugins that were killed while they wrote. It needs the exclusive lock.
func (s *store) sweep() error {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && e.Type().IsRegular() {
			errs = append(errs, s.root.Remove(e.Name()))
		}
	}
	return errors.Join(errs...)
}
