package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/backend/bypass"
	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// Carrier is a fastpath.Path.
type Carrier interface {
	Run(context.Context) error
	SetOwn(fastpath.Own)
	Replace(all []fastpath.Claim)
	Update(changed []fastpath.Claim)
	SetContainers([]fastpath.Container)
	SetSlow(judge func(netip.Addr) bool)
	Slow(addrs []netip.Addr, slow bool)
	Use(off string, tracked bool, links map[int]string)
	Status() fastpath.Status
	Programs() []uint32
}

// Lookout is a bypass.Watcher.
type Lookout interface {
	Run(context.Context) error
	Watch(bypass.Ours)
	Report() bypass.Report
	Changed() <-chan struct{}
}

// FastConfig is what a FastPath is made of.
type FastConfig struct {
	Mode    api.FastPathMode
	Load    func() (Carrier, error) // is called when something may be fast, until it does not fail
	Watch   func() (Lookout, error) // is called once, after that
	Records *attachment.Follower
	Log     *slog.Logger
}

// FastEnd is this host's end of the fast path, and of what it takes packets past.
type FastEnd struct {
	fastpath.Own
	Link     string         // of Underlay
	Direct   bool           // some peers are reached without a tunnel
	Networks []netip.Prefix // of containers
}

// FastPath brings together what carries packets fast, what on the host wants to see them, the records of containers, and what
// people want. All methods but Run may be called at any time.
type FastPath struct {
	cfg     FastConfig
	records <-chan struct{}
	wake    chan struct{} // capacity 1, as the next
	loaded  chan struct{}

	mu    sync.Mutex // guards what follows, and the order of calls of path
	mode  api.FastPathMode
	path  Carrier // nil: not loaded
	watch Lookout // likewise
	err   error   // why it cannot be
	empty bool    // path knows no peers: it was just loaded
	end   FastEnd
	slow  func(netip.Addr, attachment.Key) bool

	owners   atomic.Pointer[map[netip.Addr]attachment.Key] // of addresses of containers
	programs []uint32                                      // ids of path's; of Run alone, as the next
	masters  map[int]int                                   // by the index of a container's link, the one's of its bridge
}

// NewFastPath returns one that does nothing until Run. It is to be called before the records run.
func NewFastPath(cfg FastConfig) *FastPath {
	f := &FastPath{
		cfg: cfg, mode: cfg.Mode, records: cfg.Records.Changed(), masters: map[int]int{},
		wake: make(chan struct{}, 1), loaded: make(chan struct{}, 1),
	}
	f.owners.Store(&map[netip.Addr]attachment.Key{})
	return f
}

// Run loads it, when it may be used, and keeps it, until ctx ends; then it returns nil, and packets go the slow way. What it
// cannot do it tells by Status: the slow way is there.
func (f *FastPath) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	var watch <-chan struct{}
	for {
		if f.load() {
			watch = f.watch.Changed()
			g.Go(func() error { f.keep(ctx, f.path.Run, "the fast path ended"); return nil })
			g.Go(func() error { f.keep(ctx, f.watch.Run, "what wants to see packets is not known"); return nil })
		}
		if f.path != nil {
			f.follow()
		}
		select {
		case <-ctx.Done():
			return g.Wait()
		case <-f.wake:
		case <-f.records:
		case <-watch:
		}
	}
}

// keep runs a part. One that fails leaves nothing fast.
func (f *FastPath) keep(ctx context.Context, run func(context.Context) error, what string) {
	err := run(ctx)
	if ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = fmt.Errorf("%s: %w", what, cmp.Or(err, errors.New("for no reason")))
	f.cfg.Log.Warn("packets go the slow way", "err", f.err)
	f.use()
}

// blind is a Lookout that sees nothing, and why.
type blind struct{ err error }

func (b blind) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (b blind) Watch(bypass.Ours)             {}
func (b blind) Changed() <-chan struct{}      { return nil }
func (b blind) Report() bypass.Report {
	return bypass.Report{Host: fmt.Sprintf("what it would pass by is not known: %v", b.err), Tracked: true}
}

// load loads it if it may be used and was not tried yet.
func (f *FastPath) load() bool {
	f.mu.Lock()
	wanted := f.mode != api.FastPathOff && f.path == nil && f.err == nil
	f.mu.Unlock()
	if !wanted {
		return false
	}
	path, err := f.cfg.Load()
	if err == nil {
		f.programs = path.Programs()
	}
	watch := Lookout(blind{})
	if err == nil {
		seeing, err := f.cfg.Watch()
		if watch = seeing; err != nil {
			watch = blind{err}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err = err; err != nil {
		f.cfg.Log.Info("packets go the slow way", "err", err)
		return false
	}
	f.path, f.watch, f.empty = path, watch, true
	if f.slow != nil {
		path.SetSlow(f.judge())
	}
	path.SetOwn(f.end.Own)
	task.Signal(f.loaded)
	return true
}

// follow has it know the containers, and what may be fast now.
func (f *FastPath) follow() {
	f.mu.Lock()
	end := f.end
	f.mu.Unlock()
	if records, err := f.cfg.Records.Records(); err != nil {
		f.cfg.Log.Debug("containers are not known", "err", err)
	} else {
		all, owners, ours := f.containers(records, end)
		f.hand(all, owners)
		f.watch.Watch(ours)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.use()
}

// hand tells the path the containers. An address that another container has now is taken away before it is given, so that it is
// judged anew.
func (f *FastPath) hand(all []fastpath.Container, owners map[netip.Addr]attachment.Key) {
	before := *f.owners.Load()
	moved := func(a netip.Addr) bool { had, ok := before[a]; return ok && had != owners[a] }
	if stay := slices.Clone(all); slices.ContainsFunc(all, func(c fastpath.Container) bool { return slices.ContainsFunc(c.Addrs, moved) }) {
		for i, c := range stay {
			stay[i].Addrs = slices.DeleteFunc(slices.Clone(c.Addrs), moved)
		}
		f.path.SetContainers(stay)
	}
	f.owners.Store(&owners)
	f.path.SetContainers(all)
}

// use says what may be fast. It is called with mu held.
func (f *FastPath) use() {
	if f.path == nil {
		return
	}
	r := f.watch.Report()
	off := ""
	switch {
	case f.err != nil:
		off = f.err.Error()
	case f.mode == api.FastPathOff:
		off = switchedOff
	case f.mode == api.FastPathAuto:
		off = r.Host
	}
	f.path.Use(off, r.Tracked, r.Links)
}
