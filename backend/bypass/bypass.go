// Package bypass tells what on this host wants to see packets that the fast path would take past it: firewalls, IPsec, shapers,
// policy routing. What it does not know it takes for something that does.
//
// Judging is pure: listings in, a reason out. A rule is of no account where it cannot match what is fast, or where it can do
// nothing to it: tunnelled packets and those between containers of one network, of connections whose first packets went the
// slow way. So most of what runtimes make is of no account, with no name of theirs known here.
package bypass

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"github.com/vishvananda/netns"
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
}

// Report says what may not be passed by.
type Report struct {
	Host    string         // why nothing may, in one line; empty: it may
	Tracked bool           // something here tracks connections
	Links   map[int]string // of containers, by index: why what is theirs may not
}

// Watcher watches a host.
type Watcher struct{}

// New returns a watcher, which listens to the kernel from now on. Until it knows better, its report is that nothing may.
func New(Config) (*Watcher, error) { return nil, errors.ErrUnsupported }

// Run looks, and looks again after changes, until ctx ends; then it returns nil. It is to be called once.
func (w *Watcher) Run(ctx context.Context) error { return errors.ErrUnsupported }

// Watch says what is ours. It costs little where little changed.
func (w *Watcher) Watch(ours Ours) {}

// Report is what was seen last.
func (w *Watcher) Report() Report { return Report{Host: "not looked yet", Tracked: true} }

// Changed receives after Report changed.
func (w *Watcher) Changed() <-chan struct{} { return nil }
