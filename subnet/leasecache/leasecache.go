// Package leasecache remembers what a host knew of the network, so that it can come up while etcd is away. It says
// whether the lease that the host had may still be served, and why not. Only one process may write to a state
// directory at a time.
package leasecache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/overlayd/overlayd/subnet"
)

// Name is the file's name in the state directory. Each of its lines is a JSON object that adds to those before.
const Name = "leases.jsonl"

const (
	// interval is the shortest time between two writes that nobody waits for.
	interval = time.Second
	// patience is how many intervals pass between two attempts that fail, and between two looks at the own lease's age.
	patience = 60
)

// Cache is the memory of a running daemon. Its methods may be called side by side. Only Lost and Forget wait for the
// disk.
type Cache struct {
	path  string
	now   func() Moment
	every time.Duration
	wake  chan struct{} // capacity 1: there is something to write
	hurry chan struct{} // capacity 1: the own lease, by which the host knows itself again, is new

	disk     sync.Mutex // guards the file; to be taken before mu
	file     *os.File   // lines are appended to it; nil: write the whole anew
	size     int64      // of the file
	snapshot int64      // size of the file when it was last written anew
	unsaid   bool       // the file may say that the host has a lease that it has not

	mu sync.Mutex
	known
	peers   map[string]*subnet.Record // by key
	changed map[string]*subnet.Record // peers that are to be written; nil: gone
	due     bool                      // something is to be written
	err     error
}

// Open returns the memory of the identity hostID in the state directory dir, and what it holds. It writes nothing yet.
func Open(dir, hostID string, now func() Moment) (*Cache, View) {
	c := &Cache{
		path: filepath.Join(dir, Name), now: now, every: interval,
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
	}
	v := c.recall(hostID, now())
	if c.Host = hostID; v.Own == nil {
		_, err := os.Lstat(c.path)
		c.unsaid = err == nil
		c.note() // so that it stays so
	}
	return c, v
}

// Peers notes the leases of other hosts that changed, by key; nil: the peer is gone. The records must not change
// afterwards.
func (c *Cache) Peers(changed map[string]*subnet.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, r := range changed {
		old := c.peers[key]
		if r == nil {
			delete(c.peers, key)
		} else {
			c.peers[key] = r // also if it says the same, so that there is only one of it in memory
		}
		if old != r && (old == nil || r == nil || !old.Equal(*r)) {
			c.changed[key] = r
			c.note()
		}
	}
}

// Config notes the network config in force, and the id of the etcd cluster that it is of.
func (c *Cache) Config(raw []byte, cluster uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Network != string(raw) || c.Cluster != cluster {
		c.Network, c.Cluster = string(raw), cluster
		c.note()
	}
}

// Etcd notes where etcd is: the endpoints that were configured, and those that they led to.
func (c *Cache) Etcd(seeds, members []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.Seeds, seeds) || !slices.Equal(c.Members, members) {
		c.Seeds, c.Members = seeds, members
		c.note()
	}
}

// Held notes that the host holds the lease r until a time that etcd was heard to grant; r without a LeaseID does not
// end. nic is the MAC of the underlay's link. A host that held another lease calls Lost first.
func (c *Cache) Held(r subnet.Record, until time.Time, nic string) {
	now := c.now()
	// Go's clock stands still while the host is suspended, and the wall clock may jump.
	left := min(until.Sub(now.Wall), until.Round(0).Sub(now.Wall.Round(0)))
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.Own
	switch {
	case o == nil || o.Lost != "" || !o.Record.Equal(r) || o.NIC != nic || o.Boot != now.host():
		signal(c.hurry)
	case r.LeaseID == 0 || o.Seen.Wall.Add(o.Left).Equal(until):
		return
	}
	c.Own = &own{Record: r, Boot: now.host(), NIC: nic, Seen: now, Left: left}
	c.note()
}

// Lost notes that the host does not hold its lease any more, and what became of it, like "belongs to host b". Once it
// returned nil no later start counts on the lease, whatever happens to the host.
func (c *Cache) Lost(reason string) error {
	reason = "was lost when it was last seen: " + reason
	return c.never(func() bool {
		if c.Own == nil || c.Own.Lost == reason {
			return false
		}
		c.Own.Lost = reason
		return true
	})
}

// Forget notes that the host is hostID from now on. Once it returned nil no later start counts on a lease from before.
func (c *Cache) Forget(hostID string) error {
	return c.never(func() bool {
		c.Host, c.Own = hostID, nil
		return true
	})
}

// never makes a change after which the own lease of before must not be read again.
func (c *Cache) never(change func() bool) error {
	c.disk.Lock()
	defer c.disk.Unlock()
	c.mu.Lock()
	if change() {
		c.unsaid = true
		c.note()
	}
	c.mu.Unlock()
	if !c.unsaid {
		return nil
	}
	err := c.write(true)
	c.unsaid = err != nil
	if err != nil { // on a full disk: better nothing remembered than a lease that is another's
		gone := os.Remove(c.path)
		if (gone == nil || errors.Is(gone, fs.ErrNotExist)) && syncDir(c.path) == nil {
			return nil
		}
	}
	return err
}

// Err says why what was noted last could not be written; nil if all is well. It is tried again.
func (c *Cache) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// note has Run write. The caller holds mu, but for Open.
func (c *Cache) note() {
	c.due = true
	signal(c.wake)
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run writes what is noted until ctx ends, and then the rest.
func (c *Cache) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-c.wake:
		case <-time.After(patience * c.every): // the lease may have ended
		}
		pause, hurry := c.every, c.hurry
		if c.flush(false) != nil {
			pause, hurry = patience*c.every, nil
		}
		select {
		case <-ctx.Done():
		case <-hurry:
		case <-time.After(pause):
		}
	}
	c.flush(true)
	return nil
}
