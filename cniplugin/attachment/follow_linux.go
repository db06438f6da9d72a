package attachment

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reread is how often all is read in any case: of a directory that something was mounted upon the kernel tells nothing.
	reread = 5 * time.Minute
	// calm is how long after a change of the directories they are looked at again.
	calm = 50 * time.Millisecond
	// pace is how often all is read where it cannot be watched.
	pace = 10 * time.Second

	ofRecords = unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_CREATE | unix.IN_CLOSE_WRITE | unix.IN_DELETE | unix.IN_ATTRIB | ofItself
	ofDirs    = unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_CREATE | unix.IN_DELETE | unix.IN_ATTRIB | ofItself
	ofItself  = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
)

// Follower knows the records in a directory as they are now. While nothing changes it costs nothing, and a change costs the
// reading of the file that changed.
type Follower struct {
	dir     string
	log     *slog.Logger
	changed []chan struct{} // of who subscribed
	read    chan struct{}   // closed when there is something to tell
	first   sync.Once

	mu      sync.Mutex
	err     error // why nothing is known; nil: records are complete
	records map[Key]Attachment

	unread map[Key]string // by Run: what is wrong with those that cannot be read
}

// Follow returns a follower of dir, which may not be there yet, that knows nothing until Run.
func Follow(dir string, log *slog.Logger) *Follower {
	return &Follower{dir: dir, log: log, read: make(chan struct{}), unread: map[Key]string{}, err: errors.New("not read yet")}
}

// Changed returns what receives after the records changed, for one who follows them. It is to be called before Run.
func (f *Follower) Changed() <-chan struct{} {
	c := make(chan struct{}, 1)
	f.changed = append(f.changed, c)
	return c
}

// Records are those of interfaces that this boot has made, in no order. Where there is no directory, or only root may read it
// (an older plugin has made it), there are none. It waits until Run has read them.
func (f *Follower) Records() ([]Attachment, error) {
	<-f.read
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, fmt.Errorf("records of containers: %s: %w", f.dir, f.err)
	}
	return slices.Collect(maps.Values(f.records)), nil
}

// Run follows until ctx ends; then it returns nil.
func (f *Follower) Run(ctx context.Context) error {
	defer f.first.Do(func() { close(f.read) })
	said := ""
	for ctx.Err() == nil {
		pause := calm
		if err := f.follow(ctx); err != nil { // the kernel has no more watches to give, say
			if err.Error() != said {
				f.log.Warn("cannot watch the records of containers: reading them now and then", "err", err)
				said = err.Error()
			}
			f.readAll()
			pause = pace
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// follow watches the directories as they are now, reads all, and then what changes, until the directories themselves change.
func (f *Follower) follow(ctx context.Context) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	networks, err := f.watch(fd)
	if err != nil {
		return err
	}
	f.readAll()
	if err := events.SetReadDeadline(time.Now().Add(reread)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) })()
	for buf := make([]byte, 64<<10); ; {
		n, err := events.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		if !f.hear(buf[:n], networks) {
			return nil
		}
	}
}

// watch watches the directory and those of the networks in it, whose names it returns by their watches; or, as long as it is
// not there, the nearest that is.
func (f *Follower) watch(fd int) (networks map[int]string, err error) {
	below, dir := "", f.dir
	for {
		if _, err = unix.InotifyAddWatch(fd, dir, ofDirs); err == nil {
			break
		}
		if !gone(err) || dir == filepath.Dir(dir) {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		below, dir = dir, filepath.Dir(dir)
	}
	if below != "" {
		if _, err := unix.InotifyAddWatch(fd, below, ofDirs); err == nil { // it was made in between
			return f.watch(fd)
		}
	}
	networks = map[int]string{}
	entries, err := os.ReadDir(f.dir)
	if err != nil && !gone(err) {
		return nil, err
	}
	for _, e := range entries {
		if e.IsDir() {
			wd, err := unix.InotifyAddWatch(fd, filepath.Join(f.dir, e.Name()), ofRecords)
			if err != nil && !gone(err) {
				return nil, fmt.Errorf("%s: %w", e.Name(), err)
			}
			networks[wd] = e.Name()
		}
	}
	return networks, nil
}

// gone says whether there is nothing to be read: no directory, or one that is root's alone.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOTDIR)
}

// hear takes in what the kernel tells. It says no if that may concern more than single records.
func (f *Follower) hear(events []byte, networks map[int]string) (single bool) {
	dirty := map[Key]bool{}
	for len(events) >= unix.SizeofInotifyEvent {
		wd, mask := int(int32(binary.NativeEndian.Uint32(events))), binary.NativeEndian.Uint32(events[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:end]), "\x00")
		events = events[end:]
		network, isNetwork := networks[wd]
		switch {
		case mask&(unix.IN_ISDIR|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_Q_OVERFLOW|unix.IN_UNMOUNT) != 0:
			return false
		case isNetwork: // else it is a file on its way to its name
			if k, ok := parseFileName(network, name); ok {
				dirty[k] = true
			}
		}
	}
	f.mu.Lock()
	records := maps.Clone(f.records)
	f.mu.Unlock()
	err := look(f.dir, func(s *Store) error {
		for k := range dirty {
			f.load(s, k, records)
		}
		return nil
	})
	if len(dirty) > 0 {
		f.set(records, nil)
	}
	return err == nil
}

// readAll reads all records.
func (f *Follower) readAll() {
	records := map[Key]Attachment{}
	err := look(f.dir, func(s *Store) error {
		networks, err := s.Networks()
		for _, network := range networks {
			keys, err := s.List(network)
			f.name(Key{Network: network}, err)
			for _, k := range keys {
				f.load(s, k, records)
			}
		}
		return err
	})
	if gone(err) {
		err = nil
	}
	f.set(records, err)
}

// load reads one record.
func (f *Follower) load(s *Store, k Key, records map[Key]Attachment) {
	delete(records, k)
	a, err := s.Load(k)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else if err == nil && !a.OfEarlierBoot() {
		records[k] = a
	}
	f.name(k, err)
}

// name names what cannot be read, once.
func (f *Follower) name(k Key, err error) {
	if err == nil {
		delete(f.unread, k)
	} else if f.unread[k] != err.Error() {
		f.unread[k] = err.Error()
		f.log.Warn("record of a container cannot be read", "err", err)
	}
}

// set makes the records known.
func (f *Follower) set(records map[Key]Attachment, err error) {
	f.mu.Lock()
	f.records, f.err = records, err
	f.mu.Unlock()
	f.first.Do(func() { close(f.read) })
	for _, c := range f.changed {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
