package enforce

import (
	"context"
	"fmt"
	"sync"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// Common is what the Tables of several networks have in common in a namespace: the table of who waits, to which the plugin adds
// whose network it may be, and what bridges show.
type Common struct {
	all *Table // without policies

	mu    sync.Mutex
	needs map[string]need // of each network that has a Table
}

// need says whether a network has policies in force, for which containers wait.
type need uint8

const (
	unknown need = iota // what an earlier run left stays
	none
	some
)

// NewCommon makes what touches nothing until a Table does. Of the Config, Registerer, Network and Common do not matter.
func NewCommon(cfg Config) (*Common, error) {
	t, err := New(Config{Namespace: cfg.Namespace, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	t.table, t.quiet = rtnl.Table{}, true
	return &Common{all: t, needs: map[string]need{}}, nil
}

// Run heals what others change, until ctx ends; then it returns nil and leaves all as it is.
func (c *Common) Run(ctx context.Context) error { return c.all.Run(ctx) }

// Enforces says whether a network has policies in force.
func (c *Common) Enforces(network string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.needs[network] == some
}

// Leave ends a network: nobody waits for its policies.
func (c *Common) Leave(network string) error {
	err := c.drop(network)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.needs, network)
	return err
}

func (c *Common) enroll(network string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.needs[network] = unknown
}

// hold has containers wait.
func (c *Common) hold(network string, on Options) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.needs[network] = some
	t := c.all
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on = &on
	if err := t.holdPending(); err != nil {
		return err
	}
	t.holdRoutes()
	return nil
}

// drop has nobody wait any more, if no other network needs it.
func (c *Common) drop(network string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.needs[network] = none
	for _, n := range c.needs {
		if n != none {
			return nil
		}
	}
	t := c.all
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on, t.routes = nil, false
	clear(t.waiting)
	if _, err := remove(t.conn, pendingTable, pending.Routes); err != nil {
		return fmt.Errorf("let containers pass: %w", err)
	}
	return nil
}

// Former takes away what an earlier run has left of a network, which has no policies in force.
func (c *Common) Former(network string) (found bool, err error) {
	found, err = RemoveOf(c.all.ns, network)
	if err == nil {
		err = c.drop(network)
	}
	return found, err
}
