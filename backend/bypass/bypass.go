// Package bypass tells what on this host wants to see packets that the fast path would take past it: firewalls, IPsec, shapers,
// policy routing. What it does not know it takes for something that does.
//
// Judging is pure: listings in, a reason out. A rule is of no account where it cannot match what is fast, or where it can do
// nothing to it: tunnelled packets and those between containers of one network, of connections whose first packets went the
// slow way. So most of what runtimes make is of no account, with no name of theirs known here.
package bypass

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

// Config is what a Watcher is made of.
type Config struct {
	Namespace netns.NsHandle // zero: the current one. It must stay open until Run returns
	Log       *slog.Logger
}

// Ours is what of this host is the overlay's.
type Ours struct {
	Bridges, Overlays []string         // links
	Underlay          string           // link
	Direct            bool             // some peers are reached without a tunnel
	Tunnels           []netip.AddrPort // our ends
	Containers        []int            // indexes of their links on the host
	Networks          []netip.Prefix   // of containers; the fast path leads from each to itself
	Programs          []uint32         // ids of our tc programs

	routed bool // some containers' links are no bridge's
}

// Report says what may not be passed by.
type Report struct {
	Host    string         // why nothing may, in one line; empty: it may
	Tracked bool           // something here tracks connections
	Links   map[int]string // of containers, by index: why what is theirs may not
}

// Watcher watches a host. All methods but Run may be called at any time.
type Watcher struct {
	log     *slog.Logger
	every   time.Duration
	ns      netns.NsHandle
	nft     *nftables // nil: the kernel has none
	links   traffic
	routes  *netlink.Handle
	xfrm    *netlink.Handle // nil: the kernel has no IPsec
	events  []*rtnl.Conn
	wake    chan struct{}
	changed chan struct{}

	mu       sync.Mutex
	ours     Ours
	known    bool // what is ours
	report   Report
	stale    map[rtnl.Table]bool // tables that changed since they were read
	lost     bool                // perhaps more changed
	rest     bool                // something but tables and containers' links changed
	dirty    map[int]struct{}    // containers' links to look at
	seen     map[int]linkSeen    // containers' links that were looked at
	byTables map[int]string      // what tables say of containers' links
	byLinks  map[int]string      // what they themselves say

	containers map[int]bool // ours.Containers

	// What follows is Run's.
	tables map[rtnl.Table][]*table
	asked  []string // names of links in them that may be containers'
	routed bool     // they were judged as if containers' packets came by their own links
}

// New returns a watcher, which listens to the kernel from now on. Until it knows better, its report is that nothing may.
func New(cfg Config) (*Watcher, error) {
	w := &Watcher{
		log: cfg.Log, every: every, ns: cfg.Namespace, wake: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		report: Report{Host: "what else is on this host was not looked at yet", Tracked: true},
		stale:  map[rtnl.Table]bool{}, dirty: map[int]struct{}{}, seen: map[int]linkSeen{}, byLinks: map[int]string{}, tables: map[rtnl.Table][]*table{},
	}
	if err := w.open(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// open opens what tells of changes, and what is asked; of parts of the kernel that not every kernel has, where it has them.
func (w *Watcher) open() (err error) {
	ns := rtnl.OrCurrent(w.ns)
	w.links.ns = w.ns
	if w.links.conn, err = rtnl.Dial(w.ns, rtnl.AnswersSize); err != nil {
		return fmt.Errorf("traffic control: %w", err)
	}
	if w.routes, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("rules of routing: %w", err)
	}
	listen := func(dial func(netns.NsHandle, int, ...uint) (*rtnl.Conn, error), groups ...uint) (bool, error) {
		c, err := dial(w.ns, rtnl.EventsSize, groups...)
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			return false, nil
		}
		if err == nil {
			w.events = append(w.events, c)
		}
		return err == nil, err
	}
	has, err := listen(rtnl.DialNetfilter, unix.NFNLGRP_NFTABLES)
	if err == nil && has {
		w.nft = &nftables{}
		w.nft.conn, err = rtnl.DialNetfilter(w.ns, rtnl.AnswersSize)
	}
	if err != nil {
		return fmt.Errorf("changes of nftables (needs CAP_NET_ADMIN): %w", err)
	}
	if _, err := listen(rtnl.Dial, unix.RTNLGRP_TC, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE); err != nil {
		return fmt.Errorf("changes of traffic control: %w", err)
	}
	has, err = listen(rtnl.DialXfrm, nl.XFRMNLGRP_POLICY)
	if err == nil && has {
		w.xfrm, err = netlink.NewHandleAt(ns, unix.NETLINK_XFRM)
	}
	if err != nil {
		return fmt.Errorf("changes of IPsec's policies: %w", err)
	}
	return nil
}

// Watch says what is ours. It costs little where little changed. Of a link that was not looked at yet the report says so.
func (w *Watcher) Watch(ours Ours) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.ours
	w.ours, w.known = ours, true
	now := make(map[int]bool, len(ours.Containers))
	for _, index := range ours.Containers {
		now[index] = true
		if _, ok := w.seen[index]; !ok {
			w.dirty[index] = struct{}{}
		}
	}
	maps.DeleteFunc(w.byLinks, func(index int, _ string) bool { return !now[index] })
	maps.DeleteFunc(w.seen, func(index int, _ linkSeen) bool { return !now[index] })
	w.containers = now
	maps.DeleteFunc(w.dirty, func(index int, _ struct{}) bool { return !now[index] })
	programs := !slices.Equal(before.Programs, ours.Programs)
	if programs {
		for index := range now {
			w.dirty[index] = struct{}{}
		}
	}
	before.Containers, ours.Containers = nil, nil
	w.rest = w.rest || programs || !reflect.DeepEqual(before, ours)
	task.Signal(w.wake)
}

// Report is what was seen last.
func (w *Watcher) Report() Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.report
	r.Links = maps.Clone(w.byLinks)
	maps.Copy(r.Links, w.byTables)
	for index := range w.containers {
		if _, ok := w.seen[index]; !ok {
			r.Links[index] = "the link was not looked at yet"
		}
	}
	return r
}

// Changed receives after Report changed.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

func (w *Watcher) close() {
	for _, c := range w.events {
		c.Close()
	}
	for _, h := range []*netlink.Handle{w.routes, w.xfrm} {
		if h != nil {
			h.Close()
		}
	}
	if w.nft != nil && w.nft.conn != nil {
		w.nft.conn.Close()
	}
	if w.links.conn != nil {
		w.links.conn.Close()
	}
}
