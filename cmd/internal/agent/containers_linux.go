package agent

import (
	"context"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/ports"
	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// Containers has the firewall hold what lets containers send, by the records that the CNI plugin makes of them. The plugin adds
// that itself, before there is the record: what is there for a link that has none stays as long as the link does.
type Containers struct {
	records  *attachment.Follower
	elements *firewall.Elements
	changed  <-chan struct{} // the records

	mu      sync.Mutex
	wanted  map[string][]string // keys, by set; nil: to be worked out
	indexes map[int]bool        // of links that there are records of
}

// NewContainers returns what does nothing until Run. It is to be called before the firewall and the records run.
func NewContainers(records *attachment.Follower, elements *firewall.Elements) *Containers {
	c := &Containers{records: records, elements: elements, changed: records.Changed()}
	elements.FollowPorts(c.keys)
	return c
}

// Run follows the records until ctx ends; then it returns nil.
func (c *Containers) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.changed:
		}
		c.mu.Lock()
		c.wanted = nil
		c.mu.Unlock()
		c.elements.LookAtPorts()
	}
}

// keys are those that are to be in a set, given what is there.
func (c *Containers) keys(set string, there map[string]bool) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.workOut(); err != nil {
		return nil, err
	}
	keys := c.wanted[set]
	exists := map[int]bool{}
	for key := range there {
		index := ports.Element{Set: set, Key: key}.Index()
		if c.indexes[index] {
			continue
		}
		if _, asked := exists[index]; !asked {
			_, err := netlink.LinkByIndex(index)
			exists[index] = err == nil
		}
		if exists[index] {
			keys = append(keys[:len(keys):len(keys)], key)
		}
	}
	return keys, nil
}

func (c *Containers) workOut() error {
	if c.wanted != nil {
		return nil
	}
	records, err := c.records.Records()
	if err != nil {
		return err
	}
	c.wanted, c.indexes = map[string][]string{}, map[int]bool{}
	for _, a := range records {
		port, ok := a.Port()
		if !ok {
			continue
		}
		c.indexes[port.Index] = true
		for _, e := range port.Elements() {
			c.wanted[e.Set] = append(c.wanted[e.Set], e.Key)
		}
	}
	return nil
}
