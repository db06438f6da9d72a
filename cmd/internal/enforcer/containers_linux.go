package enforcer

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/identity"
)

// rereadFiles is how often the files of endpoints are read in any case, and watched anew.
const rereadFiles = time.Minute

// Containers are this host's: those that the CNI plugin has records of, and those that others wrote files of.
type Containers struct {
	records *attachment.Follower
	changed <-chan struct{} // the records
	dir     string
	log     *slog.Logger
	tell    []chan struct{}
	known   bool
	adding  sync.Mutex // guards tell and known

	mu     sync.Mutex
	files  []Local
	unread map[string]string
}

// NewContainers is to be called before records run. Dir is where the files are, as identity.Dir says.
func NewContainers(records *attachment.Follower, dir string, log *slog.Logger) *Containers {
	return &Containers{records: records, changed: records.Changed(), dir: dir, log: log, unread: map[string]string{}}
}

// Changes returns what receives after Locals changed, and when they are known first; each caller's is its own.
func (c *Containers) Changes() <-chan struct{} {
	c.adding.Lock()
	defer c.adding.Unlock()
	changes := make(chan struct{}, 1)
	if c.known {
		changes <- struct{}{}
	}
	c.tell = append(c.tell, changes)
	return changes
}

// Look has Changes receive: somebody sees what there is otherwise.
func (c *Containers) Look() {
	c.adding.Lock()
	defer c.adding.Unlock()
	c.known = true
	for _, changes := range c.tell {
		task.Signal(changes)
	}
}

// Run follows both until ctx ends; then it returns nil.
func (c *Containers) Run(ctx context.Context) error {
	c.read()
	known := false
	for ctx.Err() == nil {
		var events chan fsnotify.Event
		watcher, err := fsnotify.NewWatcher()
		if err == nil {
			if os.MkdirAll(c.dir, 0o755) == nil && watcher.Add(c.dir) == nil {
				events = watcher.Events
			}
			c.read()
			if known {
				c.Look()
			}
		}
		for again := time.After(rereadFiles); again != nil; {
			select {
			case <-ctx.Done():
				again = nil
			case <-c.changed:
				known = true
				c.Look()
			case ev, ok := <-events:
				if !ok || ev.Name == c.dir { // the directory is gone
					again = nil
					break
				}
				c.read()
				if known {
					c.Look()
				}
			case <-again:
				again = nil
			}
		}
		if err == nil {
			watcher.Close()
		}
	}
	return nil
}

// read reads the files.
func (c *Containers) read() {
	all, unread, err := identity.ReadDir(c.dir)
	if err != nil {
		c.log.Warn("endpoints cannot be read", "dir", c.dir, "err", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, err := range unread {
		if c.unread[id] != err.Error() {
			c.log.Warn("endpoint cannot be read", "id", id, "err", err)
		}
		c.unread[id] = err.Error()
	}
	maps.DeleteFunc(c.unread, func(id, _ string) bool { return unread[id] == nil })
	c.files = nil
	for id, ep := range all {
		c.files = append(c.files, Local{Endpoint: api.Endpoint{Endpoint: ep, ContainerID: id}})
	}
}

// Locals are all endpoints of this host.
func (c *Containers) Locals() ([]Local, error) {
	records, err := c.records.Records()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	all := slices.Clone(c.files)
	c.mu.Unlock()
	for _, a := range records {
		l := Local{Created: a.Created, LinkLocal: a.LinkLocal(), Untracked: a.Untracked, Endpoint: api.Endpoint{Network: a.Network, ContainerID: a.ContainerID, IfName: a.IfName}}
		l.Endpoint.Endpoint = a.PolicyEndpoint()
		if len(l.IPs) > 0 {
			all = append(all, l)
		}
	}
	return all, nil
}

// BridgeOf is the bridge by which an address of this host's containers is reached; empty: none.
func BridgeOf(addr netip.Addr) string {
	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil || len(routes) == 0 {
		return ""
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil || link.Type() != "bridge" {
		return ""
	}
	return link.Attrs().Name
}
