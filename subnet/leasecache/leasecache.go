// Package leasecache remembers what a host knew of the network, so that it can come up while etcd is away. It says
// whether the lease that the host had may still be served, and why not. Only one process may write to a state
// directory at a time.
package leasecache

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
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
	// patience is how many intervals pass between two attempts at most, and between two looks at the own lease's age.
	patience = 60
)

// View is the network as this host last saw it.
type View struct {
	Config   []byte           // the network config as etcd had it; nil: none
	Own      *subnet.Record   // the host's own lease if it counts; nil: see Reason
	Expires  time.Time        // when Own ends, by the wall clock; zero: it does not expire
	Reason   string           // why no lease counts, for an operator; empty if one does
	Last     *subnet.Record   // the lease that the host had last, whether it counts or not; nil: none
	Peers    []*subnet.Record // in no order
	NIC      string           // MAC of the underlay's link when Last was held; empty: unknown
	SameBoot bool             // Last was held since the host was booted, and by no other host of the same kernel
}

// Read returns what the identity hostID remembers in the state directory dir, and changes nothing. What cannot be
// read is not remembered; Reason says so.
func Read(dir, hostID string, now Moment) View {
	s := load(filepath.Join(dir, Name))
	return s.view(hostID, now)
}

// view judges what was remembered. Of another identity, nothing counts.
func (s *state) view(hostID string, now Moment) View {
	if s.host != "" && s.host != hostID {
		v := View{Reason: "the remembered leases are another host's: the state directory was copied, or its identity was replaced"}
		if s.own != nil {
			v.Reason = "the remembered lease of " + s.own.name() + " is another host's: the state directory was copied, or its identity was replaced"
		}
		*s = state{peers: make(map[string]*subnet.Record), fault: v.Reason}
		return v
	}
	v := View{Config: s.config, Reason: s.fault, Peers: slices.Collect(maps.Values(s.peers))}
	if s.own == nil {
		if v.Reason == "" {
			v.Reason = "no lease is remembered"
		}
		return v
	}
	v.Last, v.NIC, v.SameBoot = s.own.record, s.own.NIC, s.own.Boot == now.host() && now.Boot != ""
	if why := s.own.advance(now); why != "" {
		v.Reason = "the remembered lease of " + s.own.name() + " " + why
		return v
	}
	if v.Own = v.Last; v.Own.LeaseID != 0 {
		v.Expires = now.Wall.Add(s.own.stamp.Left)
	}
	return v
}

func (o *own) name() string {
	var name string
	for i, p := range o.record.Subnets() {
		if i > 0 {
			name += " and "
		}
		name += p.String()
	}
	return name
}

// advance stamps the lease anew, so that the time that has passed is known whatever becomes of the clocks. It returns
// why the lease does not count; empty if it does. One that has ended never counts again.
func (o *own) advance(now Moment) (why string) {
	if o.Lost != "" || o.LeaseID == 0 {
		return o.Lost
	}
	passed, unknown := now.since(o.stamp.Seen)
	if unknown != "" {
		return unknown
	}
	o.stamp = stamp{now, o.stamp.Left - passed}
	if o.stamp.Left <= 0 {
		o.Lost = "ended at " + now.Wall.Add(o.stamp.Left).UTC().Format(time.RFC3339)
	}
	return o.Lost
}

// Cache is the memory of a running daemon. Its methods may be called side by side. Only Lost and Forget wait for the
// disk.
type Cache struct {
	path  string
	now   func() Moment
	log   *slog.Logger
	every time.Duration
	wake  chan struct{} // capacity 1: there is something to write
	hurry chan struct{} // capacity 1: the own lease, by which the host knows itself again, is new

	disk     sync.Mutex // guards the file; to be taken before mu
	tail     tail       // without a file: write the whole anew
	snapshot int64      // size of the file when it was last written anew

	mu                sync.Mutex
	state             state
	changed           map[string]*subnet.Record // peers that are to be written; nil: gone
	newConfig, newOwn bool                      // is to be written
	due               bool                      // something is to be written
	err               error
}

// Open returns the memory of the identity hostID in the state directory dir, and what it holds. It writes nothing yet.
func Open(dir, hostID string, now func() Moment, log *slog.Logger) (*Cache, View) {
	c := &Cache{
		path:    filepath.Join(dir, Name),
		now:     now,
		log:     log,
		every:   interval,
		wake:    make(chan struct{}, 1),
		hurry:   make(chan struct{}, 1),
		changed: make(map[string]*subnet.Record),
	}
	c.state = load(c.path)
	v := c.state.view(hostID, now())
	c.state.host = hostID
	if c.state.fault != "" || c.state.own != nil && c.state.own.Lost != "" {
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
		old := c.state.peers[key]
		if r == nil {
			delete(c.state.peers, key)
		} else {
			c.state.peers[key] = r // also if it says the same, so that there is only one of it in memory
		}
		if old == r || old != nil && r != nil && old.Equal(*r) {
			continue
		}
		c.changed[key] = r
		c.note()
	}
}

// Config notes the network config in force.
func (c *Cache) Config(raw []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !bytes.Equal(c.state.config, raw) {
		c.state.config, c.newConfig = raw, true
		c.note()
	}
}

// Held notes that the host holds the lease r until a time that etcd was heard to grant; r without a LeaseID does not
// end. nic is the MAC of the underlay's link. A host that held another lease calls Lost first.
func (c *Cache) Held(r subnet.Record, until time.Time, nic string) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.state.own
	switch {
	case o == nil || o.Lost != "" || !o.record.Equal(r) || o.NIC != nic || o.Boot != now.host():
		l, err := newLease(&r)
		if err != nil {
			c.log.Error("the lease cannot be remembered", "subnet", r.Key(), "err", err)
			return
		}
		o = &own{lease: l, Boot: now.host(), NIC: nic, record: &r}
		c.state.own, c.newOwn = o, true
		signal(c.hurry)
	case o.until.Equal(until):
		return
	}
	// Go's clock stands still while the host is suspended, and the wall clock may jump.
	left := min(until.Sub(now.Wall), until.Round(0).Sub(now.Wall.Round(0)))
	o.until, o.stamp = until, stamp{now, left}
	c.note()
}

// Lost notes that the host does not hold its lease any more, and what became of it, like "belongs to host b". Once it
// returned nil no later start counts on the lease, whatever happens to the host.
func (c *Cache) Lost(reason string) error {
	return c.never(func() {
		reason = "was lost when it was last seen: " + reason
		if o := c.state.own; o != nil && o.Lost != reason {
			o.Lost, c.newOwn = reason, true
			c.note()
		}
	})
}

// Forget notes that the host is hostID from now on. Once it returned nil no later start counts on a lease from before.
func (c *Cache) Forget(hostID string) error {
	return c.never(func() {
		c.close() // a line can change the own lease, not take it out
		c.state.host, c.state.own = hostID, nil
		c.note()
	})
}

// never makes a change after which the own lease of before must not be read again.
func (c *Cache) never(change func()) error {
	c.disk.Lock()
	defer c.disk.Unlock()
	c.mu.Lock()
	change()
	due := c.due
	c.mu.Unlock()
	if !due {
		return nil // it was written with a sync
	}
	err := c.write(true)
	if err == nil {
		return nil
	}
	// On a full disk: better nothing remembered than a lease that is another's.
	if gone := os.Remove(c.path); gone != nil && !errors.Is(gone, fs.ErrNotExist) || syncDir(c.path) != nil {
		return err
	}
	return nil
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
	pause := c.every
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-c.wake:
		case <-time.After(patience * c.every): // the lease may have ended
		}
		hurry := c.hurry
		if c.flush(false) == nil {
			pause = c.every
		} else {
			pause, hurry = min(2*pause, patience*c.every), nil
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
