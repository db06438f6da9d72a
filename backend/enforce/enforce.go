// Package enforce is what policies are in a kernel: a table of nftables, whose chains are static and whose elements come and go
// with endpoints, the bridges whose traffic the table sees, and the connections that are judged again.
//
// The table is named overlayd_policy, of the family inet. All of it is made by netlink, each change in one transaction: a packet
// meets what was before or what is after, and who is killed leaves one or the other.
package enforce

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/policy/compile"
)

// Config is what a Table is made of.
type Config struct {
	Namespace  netns.NsHandle // zero: the current one. It must stay open until Run returns
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
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

// Flow is a connection as policies see it: from who opened it to who accepted it, behind all translation of addresses.
type Flow struct {
	Src, Dst netip.Addr
	Proto    uint8  // IPPROTO_*
	Port     uint16 // of Dst; 0: the protocol has none
}

// Denial is a packet that was dropped.
type Denial struct {
	Flow
	SrcPort uint16
	Egress  bool // what Src may send denies it, else what Dst may receive
}

// Table is the table of one network namespace, and what goes with it. But for Run, and its channels, it is for one goroutine.
// After an error of Rebuild or Apply the kernel has what it had before; Rebuild mends all.
type Table struct {
	changed chan struct{}
	denials chan Denial
}

// New makes what touches nothing until Rebuild. It listens from now on.
func New(cfg Config) (*Table, error) {
	return &Table{changed: make(chan struct{}, 1), denials: make(chan Denial, 64)}, nil
}

// Run heals what others change, and reads denials, until ctx ends; then it returns nil and leaves all as it is.
func (t *Table) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Rebuild makes the table anew, with all that is to be in it (compile.Compiler.Full), and the one for containers that are not
// ready. What is in force before stays until it is there.
func (t *Table) Rebuild(ctx context.Context, full compile.Change, on Options) error { return nil }

// Apply changes what is in the table.
func (t *Table) Apply(ctx context.Context, c compile.Change) error { return nil }

// Release lets addresses pass that were pending: their policies are in force. Those that are not pending are no error.
func (t *Table) Release(ctx context.Context, addrs []netip.Addr) error { return nil }

// Pending are the addresses that wait.
func (t *Table) Pending(ctx context.Context) ([]netip.Addr, error) { return nil, nil }

// Bridge has the traffic of a bridge pass the table, or no more. The error is pending.ErrNoBridgeNetfilter if the kernel cannot.
func (t *Table) Bridge(name string, on bool) error { return nil }

// Cut judges all connections there are, or those of only some addresses, and ends those that judge does not allow any more, with
// both ends left to find out. Connections that this host opened itself are not judged.
func (t *Table) Cut(ctx context.Context, judge func(Flow) (allowed bool), only []netip.Addr) (n int, err error) {
	return 0, nil
}

// Changed receives after others changed the table: what was isolated is closed then, but for connections that are established.
// Rebuild, and Cut, are to follow.
func (t *Table) Changed() <-chan struct{} { return t.changed }

// Denials receives some of the packets that are dropped, while Options.LogDenied. What nobody takes is lost.
func (t *Table) Denials() <-chan Denial { return t.denials }

// Remove takes the tables away: everything is open.
func (t *Table) Remove(ctx context.Context) error { return nil }

// Remove takes away what a Table, of whatever run, has made in a namespace, and tells whether there was anything.
func Remove(ns netns.NsHandle) (found bool, err error) { return false, nil }

// Dropped are the packets that the tables in a namespace have dropped, by the reason: "denied-in", "denied-out", "cut",
// "pending". There are none where the kernel has no nftables.
func Dropped(ns netns.NsHandle) (packets map[string]uint64, err error) { return nil, nil }
