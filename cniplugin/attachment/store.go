package attachment

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// DefaultDir is where the plugin keeps its attachments unless its configuration says otherwise.
const DefaultDir = "/var/lib/cni/overlay"

// How [Open] locks the store.
const (
	Shared    = syscall.LOCK_SH // for work on one attachment, which may go on beside work on others
	Exclusive = syscall.LOCK_EX // for GC, which must not take an attachment that is being made for one that is left over
)

// maxFile is how many bytes of a file are read: many times what a runtime can say of a container.
const maxFile = 4 << 20

// The modes of what the store makes: root writes, one group reads.
const (
	dirMode  = fs.ModeSetgid | 0o750
	fileMode = 0o640
)

// ErrUnusable marks an attachment's file that is there but says nothing usable. Files are replaced atomically, so
// that takes a broken disk, a hand, or a newer version of this plugin.
var ErrUnusable = errors.New("not a usable attachment file")

// errEmpty marks what a power loss has left of a file: the container is gone too.
var errEmpty = fmt.Errorf("%w: it is empty", ErrUnusable)

// Store holds the attachments: <dataDir>/<network>/<container id>:<interface>.json. All access goes through an
// [os.Root], so that no name, however odd, leads out of the directory.
type Store struct {
	dir  string
	root *os.Root
	lock *os.File // the directory itself, under flock
	key  *os.File // see LockKey
}

// Create is [Open] which makes the directory if there is none. The group gid may read what is in it.
func Create(ctx context.Context, dir string, mode int, gid uint32) (*Store, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	s, err := Open(ctx, dir, mode)
	if err == nil {
		s.share(int(gid))
	}
	return s, err
}

// share lets the group read all that is there, once; what is made later inherits it from the directory, which is the
// last. That it may not do so is no reason to refuse a container.
func (s *Store) share(gid int) {
	info, err := s.lock.Stat()
	if err != nil {
		return
	}
	has := int(info.Sys().(*syscall.Stat_t).Gid)
	if info.Mode() == fs.ModeDir|dirMode && (gid == has || gid == 0) { // root needs no group; another network's daemon may
		return
	}
	var names []string
	_ = fs.WalkDir(s.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && (entry.IsDir() || entry.Type().IsRegular()) {
			names = append(names, name)
		}
		return nil
	})
	for _, name := range slices.Backward(names) {
		mode := fs.FileMode(fileMode)
		if info, err := s.root.Lstat(name); err == nil && info.IsDir() {
			mode = dirMode
		}
		if s.root.Lchown(name, -1, gid) == nil { // which may clear the bit that the next sets
			_ = s.root.Chmod(name, mode)
		}
	}
}

// Open opens the store and locks it, [Shared] or [Exclusive], until Close; it waits for others until ctx ends. The error
// is [fs.ErrNotExist] if there is no such directory.
func Open(ctx context.Context, dir string, mode int) (*Store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("dataDir: %w", err)
	}
	lock, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dataDir: %w", err), root.Close())
	}
	s := &Store{dir: dir, root: root, lock: lock}
	if err := flock(ctx, lock, mode); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// With calls f with the store that [Open] opens, and closes it. Where there is no such directory nothing is remembered,
// and f is not called.
func With(ctx context.Context, dir string, mode int, f func(*Store) error) error {
	s, err := Open(ctx, dir, mode)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.Close()
	return f(s)
}

// LockKey waits, until ctx ends, for all others that work on the attachment k, and keeps them waiting until Close. Each
// attachment has a byte of one file, which stays empty; that two have the same one does no harm.
func (s *Store) LockKey(ctx context.Context, k Key) (err error) {
	if s.key, err = s.root.OpenFile("lock", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(filepath.Join(k.Network, k.fileName())))
	b := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(hash.Sum64() >> 2), Len: 1}
	return wait(ctx, s.path(k), func() error { return unix.FcntlFlock(s.key.Fd(), unix.F_OFD_SETLK, &b) })
}

// flock waits for the lock until ctx ends.
func flock(ctx context.Context, f *os.File, mode int) error {
	return wait(ctx, f.Name(), func() error { return syscall.Flock(int(f.Fd()), mode|syscall.LOCK_NB) })
}

// wait tries to lock what has the name until ctx ends.
func wait(ctx context.Context, name string, lock func() error) error {
	for {
		err := lock()
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return failf(types.ErrTryAgainLater, "dataDir: %s is locked by another overlay plugin", name)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Close releases the locks.
func (s *Store) Close() error {
	if s.key != nil {
		s.key.Close()
	}
	return errors.Join(s.lock.Close(), s.root.Close())
}

// path is that of an attachment's file, for people.
func (s *Store) path(k Key) string {
	return filepath.Join(s.dir, k.Network, k.fileName())
}

// Save writes the attachment's file, whole or not at all.
//
// It does not wait for the disk, which can take longer than all the rest of an ADD. After a power failure the file may
// be missing or empty, but then the namespace is gone too, and with it the interface: all that is left to free is the
// address, for which the container's id is enough.
func (s *Store) Save(a Attachment) error {
	k := a.Key()
	if err := k.Validate(); err != nil {
		return err
	}
	data, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode the attachment: %w", err)
	}
	err = s.root.Mkdir(k.Network, 0o750)
	if err == nil {
		err = s.root.Chmod(k.Network, dirMode) // whatever the caller's umask
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	if err := s.replace(filepath.Join(k.Network, k.fileName()), data); err != nil {
		return failf(types.ErrIOFailure, "dataDir: write %s: %v", s.path(k), err)
	}
	return nil
}

// replace replaces a file by way of a temporary one, which Sweep removes should nobody be left to do so.
func (s *Store) replace(name string, data []byte) error {
	temporary := "." + rand.Text()
	err := s.root.WriteFile(temporary, data, fileMode)
	if err == nil {
		err = s.root.Chmod(temporary, fileMode) // whatever the caller's umask
	}
	if err == nil {
		err = s.root.Rename(temporary, name)
	}
	if err != nil {
		_ = s.root.Remove(temporary) // if it came to that
	}
	return err
}

// Load reads an attachment. The error is [fs.ErrNotExist] if there is none of that name, [ErrUnusable] if its file
// cannot be understood.
func (s *Store) Load(k Key) (Attachment, error) {
	if err := k.Validate(); err != nil {
		return Attachment{}, err
	}
	data, err := s.read(filepath.Join(k.Network, k.fileName()))
	if err != nil {
		return Attachment{}, fmt.Errorf("dataDir: %w", err)
	}
	if len(data) == 0 {
		return Attachment{}, fmt.Errorf("%s: %w", s.path(k), errEmpty)
	}
	a, err := decode(data, k)
	if err != nil {
		return Attachment{}, fmt.Errorf("%s: %w: %w", s.path(k), ErrUnusable, err)
	}
	return a, nil
}

// read reads a file, and no link, FIFO or what is too large: those are unusable.
func (s *Store) read(name string) ([]byte, error) {
	info, err := s.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s: %w: it is no file of at most %d MiB", filepath.Join(s.dir, name), ErrUnusable, maxFile>>20)
	}
	return s.root.ReadFile(name)
}

// Remove removes an attachment's file; it may be gone already.
func (s *Store) Remove(k Key) error {
	if err := k.Validate(); err != nil {
		return err
	}
	err := s.root.Remove(filepath.Join(k.Network, k.fileName()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	return nil
}

// List returns the attachments of a network, by file name; their files may be unusable.
func (s *Store) List(network string) ([]Key, error) {
	entries, err := fs.ReadDir(s.root.FS(), network)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	var keys []Key
	for _, e := range entries {
		if k, ok := parseFileName(network, e.Name()); ok {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// Networks returns the names of the networks that have had attachments.
func (s *Store) Networks() ([]string, error) {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return nil, failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// failf makes the error that the runtime is shown.
func failf(code uint, format string, args ...any) error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// Sweep removes the temporary files of who was killed while they wrote. It needs the exclusive lock.
func (s *Store) Sweep() error {
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
