// Package enforce is what policies are in a kernel: a table of nftables, whose chains are static and whose elements come and go
// with endpoints, the bridges whose traffic the table sees, and the connections that are judged again.
//
// The table is named overlayd_policy, of the family inet. All of it is made by netlink, each change in one transaction: a packet
// meets what was before or what is after, who is killed leaves one or the other, and the kernel says of each change whose it was.
package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/policy/compile"
)

// Config is what a Table is made of.
type Config struct {
	Namespace  netns.NsHandle // zero: the current one. It must stay open until Run returns
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	Network    string                // whose policies they are; empty: the unnamed network's
	Common     *Common               // what other networks' tables have in common with it; nil: there is no other
}

// Unready is what happens to a container that is attached before its policies are in force.
type Unready string

// The ways.
const (
	Closed Unready = "closed" // it gets nothing through until they are
	Open   Unready = "open"   // it begins without
	Fail   Unready = "fail"   // as closed, and ADD fails if they are not after 2 s
)

// Options are of the whole table. A change of them needs a Rebuild.
type Options struct {
	Unready   Unready
	LogDenied bool // tell of denials, a few each second
}

// ErrRebuild is the error of Apply where Rebuild has to come first: others changed the table, or a change failed.
var ErrRebuild = errors.New("the table of policies has to be made anew")

// within is how long the kernel may take for an answer.
const within = 10 * time.Second

// Table is the table of one network namespace, and what goes with it. But for Run, and its channels, it is for one goroutine.
// After an error of Rebuild or Apply the kernel has what it had before; Rebuild mends all.
type Table struct {
	ns      netns.NsHandle
	log     *slog.Logger
	table   rtnl.Table
	network string
	common  *Common // nil: the table looks after who waits, and after bridges, itself
	quiet   bool    // it reads no denials
	changed chan struct{}
	denials chan Denial
	events  *rtnl.Conn

	mu                      sync.Mutex
	conn                    *rtnl.Conn
	batch                   rtnl.Batch
	on                      *Options                     // nil: there is to be no table
	groups                  map[compile.GroupID]group    // nil: Rebuild has to come first
	sides                   map[netip.Addr]compile.Sides // of the addresses that are isolated
	waiting                 map[netip.Addr]struct{}      // what is pending, as far as the kernel told
	counted                 map[string]uint64            // by the counters, when they were last seen
	touched, touchedPending bool                         // by others
	tracking                time.Time                    // since when more connections are, because a bridge shows its own
	shown                   map[int]bool                 // bridges, by index
	routes                  bool                         // the table pending.Routes is there, and nobody touched it
	unrouted                bool                         // it is not there
}

// New makes what touches nothing until Rebuild. It listens from now on. Where the kernel has no nftables the error is
// unix.EPROTONOSUPPORT.
func New(cfg Config) (t *Table, err error) {
	t = &Table{
		ns: rtnl.OrCurrent(cfg.Namespace), log: cfg.Log, changed: make(chan struct{}, 1), denials: make(chan Denial, 64),
		sides: map[netip.Addr]compile.Sides{}, waiting: map[netip.Addr]struct{}{}, counted: map[string]uint64{}, shown: map[int]bool{},
		touchedPending: cfg.Common == nil, table: tableOf(cfg.Network), network: cfg.Network, common: cfg.Common, quiet: cfg.Network != "",
	}
	if t.conn, err = rtnl.DialNetfilter(cfg.Namespace, rtnl.EventsSize); err != nil {
		return nil, fmt.Errorf("policies: %w", err)
	}
	if t.events, err = rtnl.DialNetfilter(cfg.Namespace, rtnl.EventsSize, unix.NFNLGRP_NFTABLES); err != nil {
		t.conn.Close()
		return nil, fmt.Errorf("policies: subscribe to changes of nftables: %w", err)
	}
	if cfg.Registerer != nil {
		err = cfg.Registerer.Register(collector{cfg.Namespace, cfg.Network})
	}
	if cfg.Common != nil {
		cfg.Common.enroll(cfg.Network)
	}
	return t, err
}

// Rebuild makes the table anew, with all that is to be in it (compile.Compiler.Full), and the one for containers that are not
// ready. What is in force before stays until it is there.
func (t *Table) Rebuild(ctx context.Context, full compile.Change, on Options) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on = &on
	hold := t.holdPending
	if t.common != nil {
		hold = func() error { return t.common.hold(t.network, on) }
	}
	if err := hold(); err != nil {
		return fmt.Errorf("nft table inet %s: %w", pendingTable.Name, err)
	}
	sides := map[netip.Addr]compile.Sides{}
	for a, s := range full.Set {
		if s != (compile.Sides{}) {
			sides[a] = s
		}
	}
	if err := t.install(full.Make, sides); err != nil {
		return fmt.Errorf("make nft table inet %s: %w", t.table.Name, err)
	}
	if t.common == nil {
		t.holdRoutes()
	}
	return nil
}

// install makes the table anew. Without groups it is closed: whoever would be in one is denied all that is new.
func (t *Table) install(make map[compile.GroupID][]compile.Match, sides map[netip.Addr]compile.Sides) error {
	if err := t.count(); err != nil {
		return err
	}
	priority, err := t.nextPriority(t.table)
	if err != nil {
		return err
	}
	x := t.begin(t.table)
	x.anew("overlayd")
	x.skeleton(*t.on, t.counted, priority)
	var groups map[compile.GroupID]group
	if make != nil {
		groups = map[compile.GroupID]group{}
		for id, matches := range make {
			groups[id] = x.make(id, matches)
		}
	}
	x.sides(nil, sides, groups)
	if err := t.commit(x); err != nil {
		return err
	}
	t.groups, t.sides, t.touched = groups, sides, false
	return nil
}

// Apply changes what is in the table. Groups that are new are there before any address leads to them, and so in a transaction of
// their own: a packet takes what rules it meets from the moment it met the first, but what is in sets from that of each look.
func (t *Table) Apply(ctx context.Context, c compile.Change) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.groups == nil {
		return ErrRebuild
	}
	x := t.begin(t.table)
	for id, matches := range c.Make {
		t.groups[id] = x.make(id, matches)
	}
	if len(c.Make) > 0 {
		if err := t.commitChange(x); err != nil {
			return err
		}
		x = t.begin(t.table)
	}
	for id, matches := range c.Remove {
		x.change(id, t.groups[id], c.Add[id], matches)
	}
	for id, matches := range c.Add {
		if _, done := c.Remove[id]; !done {
			x.change(id, t.groups[id], matches, nil)
		}
	}
	before, after := map[netip.Addr]compile.Sides{}, map[netip.Addr]compile.Sides{}
	for a, s := range c.Set {
		before[a], after[a] = t.sides[a], s
	}
	for _, a := range c.Gone {
		before[a] = t.sides[a]
	}
	x.sides(before, after, t.groups)
	for _, id := range c.Drop {
		x.dropGroup(id, t.groups[id])
		delete(t.groups, id)
	}
	if err := t.commitChange(x); err != nil {
		return err
	}
	for a := range before {
		if t.sides[a] = after[a]; after[a] == (compile.Sides{}) {
			delete(t.sides, a)
		}
	}
	return nil
}

// commitChange is commit in Apply: what is known of groups is of after it.
func (t *Table) commitChange(x *transaction) error {
	if err := t.commit(x); err != nil {
		t.groups = nil
		return fmt.Errorf("change nft table inet %s: %w", t.table.Name, errors.Join(err, ErrRebuild))
	}
	return nil
}

// begin begins a transaction.
func (t *Table) begin(table rtnl.Table) *transaction {
	t.batch.Transaction()
	return &transaction{b: &t.batch, table: table}
}

// keep is how large a buffer is kept for the next transaction, in bytes.
const keep = 1 << 20

func (t *Table) commit(x *transaction) error {
	err := t.conn.SetReadDeadline(time.Now().Add(within))
	if err == nil {
		err = t.conn.Commit(x.b)
	}
	if len(x.b.Bytes()) > keep {
		*x.b = rtnl.Batch{}
	}
	return err
}

// count reads the counters, which go on from there in the next table.
func (t *Table) count() error {
	if err := t.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	for _, table := range t.tables() {
		now, err := t.conn.Counters(&t.batch, table)
		if err != nil {
			return fmt.Errorf("read counters of nft table inet %s: %w", table.Name, err)
		}
		for name, packets := range now {
			t.counted[name] = packets
		}
	}
	return nil
}

// Changed receives after others changed the table: what was isolated is closed then, but for connections that are established.
// Rebuild, and Cut, are to follow.
func (t *Table) Changed() <-chan struct{} { return t.changed }

// Denials receives some of the packets that are dropped, while Options.LogDenied. What nobody takes is lost.
func (t *Table) Denials() <-chan Denial { return t.denials }

// Remove takes the tables away: everything is open.
func (t *Table) Remove(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on, t.groups, t.routes = nil, nil, false
	clear(t.sides)
	clear(t.waiting)
	_, err := remove(t.conn, t.tables()...)
	if t.common != nil {
		return errors.Join(err, t.common.drop(t.network))
	}
	if err == nil {
		_, err = remove(t.conn, pending.Routes)
	}
	return err
}

// tables are those that are looked after here, but for the bridges'.
func (t *Table) tables() (all []rtnl.Table) {
	if t.table != (rtnl.Table{}) {
		all = append(all, t.table)
	}
	if t.common == nil {
		all = append(all, pendingTable)
	}
	return all
}

// Remove takes away what the Tables of networks, of whatever run, have made in a namespace, and tells whether there was anything.
func Remove(ns netns.NsHandle, networks ...string) (found bool, err error) {
	tables := []rtnl.Table{tableOf(""), pendingTable, pending.Routes}
	for _, name := range networks {
		tables = append(tables, tableOf(name))
	}
	return removeIn(ns, tables...)
}

// RemoveOf takes away what one network has there that is no other's.
func RemoveOf(ns netns.NsHandle, network string) (found bool, err error) {
	return removeIn(ns, tableOf(network))
}

func removeIn(ns netns.NsHandle, tables ...rtnl.Table) (found bool, err error) {
	c, err := rtnl.DialNetfilter(ns, rtnl.AnswersSize)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove policies: %w", err)
	}
	defer c.Close()
	return remove(c, tables...)
}

func remove(c *rtnl.Conn, tables ...rtnl.Table) (found bool, err error) {
	for _, table := range tables {
		var b rtnl.Batch
		b.Transaction()
		x := &transaction{b: &b, table: table}
		x.drop(unix.NFT_MSG_DELTABLE, unix.NFTA_TABLE_NAME, table.Name)
		deadline := c.SetReadDeadline(time.Now().Add(within))
		switch one := c.Commit(&b); {
		case one == nil:
			found = true
		case !errors.Is(one, unix.ENOENT) && !errors.Is(one, unix.EOPNOTSUPP):
			err = errors.Join(err, deadline, fmt.Errorf("remove nft table %s: %w", table.Name, one))
		}
	}
	return found, err
}
