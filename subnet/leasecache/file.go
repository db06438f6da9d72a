package leasecache

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/overlayd/overlayd/subnet"
)

const (
	// maxFile bounds the file: twice 60,000 leases of both families.
	maxFile = 64 << 20
	// maxLine is more than the largest value that etcd takes can become.
	maxLine = 4 << 20
	// slack may always be appended before the file is written anew.
	slack = 64 << 10
)

// line is a line of the file: all that is known but for the peers, or one peer.
type line struct {
	Known *known         `json:",omitempty"`
	Key   string         `json:",omitempty"`
	Peer  *subnet.Record `json:",omitempty"` // nil: it is gone
}

// load reads the file up to where it is damaged. A last line without an end is torn, which is no damage.
func (c *Cache) load() error {
	c.peers, c.changed = make(map[string]*subnet.Record), make(map[string]*subnet.Record)
	f, err := subnet.OpenFile(c.path, maxFile)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, maxLine)
	for number := 1; ; number++ {
		text, err := r.ReadSlice('\n')
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = c.apply(text)
		}
		if err != nil {
			return fmt.Errorf("%s is damaged: line %d: %w", c.path, number, err)
		}
	}
}

func (c *Cache) apply(text []byte) error {
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		return err
	}
	if l.Known != nil {
		if own := l.Known.Own; own != nil {
			if _, err := own.Record.Value(); err != nil {
				return err
			}
		}
		c.known = *l.Known
		return nil
	}
	delete(c.peers, l.Key)
	if l.Peer != nil {
		if _, err := l.Peer.Value(); err == nil { // else it is no lease by the rules of this version
			c.peers[l.Key] = l.Peer
		}
	}
	return nil
}

// flush writes, and at the end closes the file.
func (c *Cache) flush(end bool) error {
	c.disk.Lock()
	defer c.disk.Unlock()
	err := c.write(end)
	if end {
		c.close()
	}
	return err
}

// write brings the file up to date if there is something to write, or if durable, and then so that it survives a
// power loss. The caller holds disk.
func (c *Cache) write(durable bool) error {
	now := c.now()
	c.mu.Lock()
	if c.Own != nil && c.Own.Lost == "" {
		c.Own.advance(now)
		durable = durable || c.Own.Lost != ""
	}
	idle := !c.due && !durable
	c.mu.Unlock()
	if idle {
		return nil
	}
	var err error
	if c.file == nil || c.size > 2*c.snapshot+slack || c.append(false, durable) != nil {
		err = c.replace()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("the leases cannot be remembered for the next start: %w", err)
		c.note()
	}
	c.err = err
	return err
}

// append writes what changed, or the whole, to the end of the file.
func (c *Cache) append(whole, durable bool) error {
	c.mu.Lock()
	head, peers := c.known, c.changed // what Own points to changes only under disk
	if whole {
		peers = c.peers
	}
	lines := make([]line, 1, 1+len(peers))
	lines[0].Known = &head
	for key, r := range peers {
		lines = append(lines, line{Key: key, Peer: r})
	}
	c.changed, c.due = make(map[string]*subnet.Record), false
	c.mu.Unlock()
	out := bufio.NewWriterSize(c, slack)
	encoder := json.NewEncoder(out)
	var err error
	for i := 0; err == nil && i < len(lines); i++ {
		err = encoder.Encode(lines[i])
	}
	err = cmp.Or(err, out.Flush())
	if err == nil && durable {
		err = c.file.Sync()
	}
	return err
}

// Write adds to the file.
func (c *Cache) Write(text []byte) (int, error) {
	if c.size+int64(len(text)) > maxFile {
		return 0, fmt.Errorf("the leases of the network take more than %d MiB", maxFile>>20)
	}
	n, err := c.file.Write(text)
	c.size += int64(n)
	return n, err
}

// replace writes the file anew. The old one stays until the new one is on the disk, whole.
func (c *Cache) replace() (err error) {
	c.close()
	path := c.path + ".new" // always this name: daemons that are killed meanwhile leave no more than one
	os.Remove(path)
	if c.file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	err = c.append(true, true)
	if err == nil {
		err = os.Rename(path, c.path)
	}
	if err == nil {
		err = syncDir(c.path)
	}
	if err != nil {
		c.close()
		os.Remove(path)
	}
	c.snapshot = c.size
	return err
}

func (c *Cache) close() {
	c.file.Close() // of nil too
	c.file, c.size = nil, 0
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
