package leasecache

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// slack may always be appended before the file is written anew.
const slack = 64 << 10

// tail is a file that lines are appended to.
type tail struct {
	file *os.File // nil: none
	crc  uint32   // of all lines
	size int64
}

func (t *tail) write(host line, peers map[string]*subnet.Record) error {
	w := bufio.NewWriter(t.file)
	if err := t.line(w, host); err != nil {
		return err
	}
	for key, r := range peers {
		l := lease{Key: key}
		if r != nil {
			if known, err := newLease(r); err == nil { // else there is no form to remember it in
				l = known
			}
		}
		if err := t.line(w, line{lease: l}); err != nil {
			return err
		}
	}
	return w.Flush()
}

func (t *tail) line(w *bufio.Writer, l line) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	text = append(text[1:], '\n')
	t.crc = crc32.Update(t.crc, castagnoli, text)
	if t.size += int64(crcLen + len(text)); t.size > maxFile {
		return fmt.Errorf("the leases of the network take more than %d MiB", maxFile>>20)
	}
	w.Write(appendCRC(w.AvailableBuffer(), t.crc))
	_, err = w.Write(text) // tells of all errors before
	return err
}

// write brings the file up to date if there is something to write, or if durable, and then so that it survives a
// power loss. The caller holds disk.
func (c *Cache) write(durable bool) error {
	if c.stamp() {
		durable = true
	}
	c.mu.Lock()
	idle := !c.due && !durable
	c.mu.Unlock()
	if idle {
		return nil
	}
	err := errors.ErrUnsupported
	if c.tail.file != nil && c.tail.size-c.snapshot <= max(c.snapshot, slack) {
		if err = c.tail.write(c.take(false)); err == nil && durable {
			err = c.tail.file.Sync()
		}
	}
	if err != nil { // whatever of it is in the file now, that goes
		c.close()
		err = c.replace()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil && c.err == nil:
		c.log.Warn("the leases cannot be remembered for the next start: trying again", "err", err)
	case err == nil && c.err != nil:
		c.log.Info("the leases are remembered again")
	}
	if c.err = err; err != nil {
		c.note()
	}
	return err
}

// stamp stamps the own lease, and returns whether it has ended since the last time.
func (c *Cache) stamp() (ended bool) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.state.own
	if o == nil || o.Lost != "" {
		return false
	}
	o.advance(now)
	c.newOwn = c.newOwn || o.Lost != ""
	return o.Lost != ""
}

// take returns what is to be written: what changed, or the whole.
func (c *Cache) take(whole bool) (host line, peers map[string]*subnet.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.state
	host, peers = line{Host: s.host}, c.changed
	if whole {
		peers = maps.Clone(s.peers)
	}
	if whole || c.newConfig {
		host.Config = new(string(s.config))
	}
	if s.own != nil && (whole || c.newOwn) {
		host.Own = s.own // what is written of it changes only under disk
	}
	if s.own != nil && s.own.Lost == "" {
		host.Stamp = new(s.own.stamp)
	}
	c.changed, c.newConfig, c.newOwn, c.due = make(map[string]*subnet.Record), false, false, false
	return host, peers
}

// replace writes the file anew. The old one stays until the new one is on the disk, whole. The new one has always the
// same name, so that daemons that are killed meanwhile leave no more than one.
func (c *Cache) replace() error {
	path := c.path + ".new"
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	next := tail{file: f}
	err = next.write(c.take(true))
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(path, c.path)
	}
	if err == nil {
		err = syncDir(c.path)
	}
	if err != nil {
		f.Close()
		os.Remove(path)
		return err
	}
	c.tail, c.snapshot = next, next.size
	return nil
}

func (c *Cache) close() {
	if c.tail.file != nil {
		c.tail.file.Close()
		c.tail = tail{}
	}
}

// syncDir makes a file's name, or that it has none any more, survive a power loss.
func syncDir(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
