// Package enforcer has policies in force on this host: it hears of policies and endpoints, has them compiled, and the kernel do
// what comes of that. What others need to know of this host's containers it tells them, by etcd.
package enforcer

import (
	"context"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/policy/compile"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

const (
	// rememberAfter is how long etcd may keep silent at the start before what is remembered is in force, as with leases.
	rememberAfter = 2 * time.Second
	// leaseWithin is how long the start waits for the host's lease, by which others' leases are known too.
	leaseWithin = 10 * time.Second
	// cutAfter is how long after something was denied its connections are judged: what allows them may be just on its way,
	// as the endpoints of other hosts that publish none before the first policy.
	cutAfter = 200 * time.Millisecond
	// lookAgain is how often it is seen to that bridges show their traffic.
	lookAgain = time.Minute
	// listWithin is how long that waits for a list of endpoints.
	listWithin = 2 * time.Second
)

// Enforcer has policies in force. All methods but Run may be called at any time.
type Enforcer struct {
	cfg      Config
	news     chan etcdstore.News // of policies and namespaces
	peerNews chan peerNews
	asked    chan func()
	wake     chan struct{} // capacity 1: Own or Peers
	changed  chan struct{}
	applied  chan struct{}
	settled  func()         // closes it
	done     chan struct{}  // the loop has ended
	aside    sync.WaitGroup // what the loop has done beside it
	metrics  metrics

	mu     sync.Mutex // guards what follows
	own    *subnet.Record
	leases map[string]*subnet.Record // of peers, since Run took them
	status api.Policy
	err    error // what needs attention

	// The rest belongs to Run.
	begun        time.Time
	compiler     *compile.Compiler
	believed     *believed
	memory       memory
	unreadable   map[string]string
	peers        *peers
	following    following
	named        bool             // others hear of all endpoints
	locals       map[string]Local // by the compiler's key; nil: not read yet
	localErr     error
	localChanged bool
	host         *subnet.Record // own, as Run knows it
	sides        map[netip.Addr]compile.Sides
	kernel       kernel
	ways         ways
	needsChanged bool // what has to be published may be otherwise
	etcdErr      error
	heard        bool // etcd has said what policies there are
	complete     bool // what is to be in force is known
	denials      []api.Denial
}

// New returns an Enforcer that does nothing until Run.
func New(cfg Config) *Enforcer {
	e := &Enforcer{
		cfg: cfg, news: make(chan etcdstore.News, 16), peerNews: make(chan peerNews, 16), asked: make(chan func()),
		wake: make(chan struct{}, 1), changed: make(chan struct{}, 1), applied: make(chan struct{}), done: make(chan struct{}),
		leases: map[string]*subnet.Record{}, compiler: compile.New(), believed: newBelieved(), unreadable: map[string]string{},
		sides: map[netip.Addr]compile.Sides{}, kernel: kernel{bridgeOf: map[netip.Addr]string{}},
	}
	e.status = api.Policy{Unready: string(cfg.Options.Unready), Pending: []string{}}
	e.settled = sync.OnceFunc(func() { close(e.applied); task.Signal(e.changed) })
	cfg.Fast.SetSlow(e.ways.slow)
	e.metrics = newMetrics(cfg.Registerer, e)
	e.compiler.Hold()
	if e.named = cfg.Names != nil; !e.named {
		e.cfg.Names = nameless{}
	}
	e.peers = newPeers(e.compiler, e.cfg.Names, e.metrics.refuse)
	e.memory = memory{path: filepath.Join(cfg.StateDir, MemoryName), network: cfg.Network}
	return e
}

// Own says which lease the host has.
func (e *Enforcer) Own(own *subnet.Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.own = own
	e.cfg.Names.Own(own)
	task.Signal(e.wake)
}

// Peers says which leases of peers changed, by key; nil: the peer is gone.
func (e *Enforcer) Peers(changed map[string]*subnet.Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, r := range changed {
		e.leases[key] = r
	}
	e.cfg.Names.Peers(changed)
	task.Signal(e.wake)
}

// Changed receives after Status changed, and after Applied was closed.
func (e *Enforcer) Changed() <-chan struct{} { return e.changed }

// Applied is closed when all that was to be in force was so for the first time.
func (e *Enforcer) Applied() <-chan struct{} { return e.applied }

// Run enforces until ctx ends; then it returns nil, and what is in force stays so.
func (e *Enforcer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.cfg.Table.Run(ctx) })
	g.Go(func() error { return e.cfg.Writer.Run(ctx) })
	g.Go(func() error { return e.cfg.Names.Run(ctx) })
	g.Go(func() error {
		e.cfg.Store.FollowKeys(ctx, func(n etcdstore.News) {
			select {
			case e.news <- n:
			case <-ctx.Done():
			}
		}, etcdstore.PolicyKeys, etcdstore.NamespaceDir)
		return nil
	})
	g.Go(func() error { e.loop(ctx); return nil })
	return g.Wait()
}

func (e *Enforcer) loop(ctx context.Context) {
	defer func() {
		close(e.done)
		e.aside.Wait()
		e.memory.dirty = e.memory.dirty || e.memory.writing // it has given up
		e.remember(time.Now(), true)
	}()
	defer e.following.stop()
	e.begun = time.Now()
	e.recall()
	timer := time.NewTimer(rememberAfter)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-e.news:
			e.hear(n)
		case n := <-e.peerNews:
			e.hearPeers(n)
		case <-e.cfg.Changes:
			e.readLocals()
		case <-e.wake:
			e.takeLeases() // or something aside has ended
		case <-e.cfg.Names.Wants():
		case <-e.cfg.Table.Changed():
			e.kernel.changedByOthers(time.Now(), e.cfg.Log)
		case <-e.cfg.Writer.Changed():
			e.localChanged = true // what is published
		case d := <-e.cfg.Table.Denials():
			e.deny(d)
			continue
		case f := <-e.asked:
			f()
			continue
		case <-timer.C:
		}
		e.drain()
		e.step(ctx, time.Now())
		timer.Reset(e.next(time.Now()))
	}
}

// drain takes in what else has come: one change of the kernel for all.
func (e *Enforcer) drain() {
	for range cap(e.news) + cap(e.peerNews) {
		select {
		case n := <-e.news:
			e.hear(n)
		case n := <-e.peerNews:
			e.hearPeers(n)
		case <-e.cfg.Changes:
			e.readLocals()
		case <-e.wake:
			e.takeLeases()
		default:
			return
		}
	}
}

// hear takes in news of policies.
func (e *Enforcer) hear(n etcdstore.News) {
	if e.etcdErr = n.Err; n.Err != nil {
		return
	}
	e.heard = e.heard || n.Listed
	doubted := e.believed.doubt()
	e.believed.take(n)
	if doubt := e.believed.doubt(); doubt != "" && doubt != doubted {
		e.cfg.Log.Error("policies are kept as they were", "err", doubt)
	}
}

// takeLeases takes in what Own and Peers have said.
func (e *Enforcer) takeLeases() {
	e.mu.Lock()
	own, leases := e.own, e.leases
	e.leases = map[string]*subnet.Record{}
	e.mu.Unlock()
	if own != e.host {
		e.host, e.needsChanged = own, true
	}
	if len(leases) > 0 {
		e.peers.take(leases)
		e.memory.dirty = true // which endpoints count
	}
}

// next is how long nothing is to be done if nothing happens.
func (e *Enforcer) next(now time.Time) time.Duration {
	at := now.Add(time.Hour)
	for _, t := range []time.Time{e.begun.Add(rememberAfter), e.begun.Add(leaseWithin), e.kernel.retry, e.kernel.cutAt, e.kernel.lookAt, e.following.until, e.memory.due} {
		if t.After(now) && t.Before(at) {
			at = t
		}
	}
	return at.Sub(now)
}

// known says whether it is known what is to be in force: policies, and all endpoints that they could mean. Until then what an
// earlier run has left in the kernel stays.
func (e *Enforcer) known(now time.Time) bool {
	waited := now.Sub(e.begun)
	switch {
	case e.complete:
		return true
	case !e.heard && waited < rememberAfter:
		return false
	case !e.compiler.Enforcing():
	case e.locals == nil, e.host == nil && waited < leaseWithin:
		return false
	case !e.following.listed && e.heard && now.Sub(e.following.since) < listWithin:
		return false
	case !e.following.listed:
		e.rely()
	}
	e.complete, e.memory.dirty = true, true
	e.memory.peers = nil                 // etcd knows better
	e.memory.due = now.Add(restPolicies) // the start has other things to do
	return true
}

// step brings the kernel, and etcd, after what is known.
func (e *Enforcer) step(ctx context.Context, now time.Time) {
	e.compile()
	change := e.compiler.Flush()
	e.track(change)
	e.follow(ctx, now)
	if e.known(now) {
		e.enforce(ctx, now, change)
		e.publish()
		e.remember(now, false)
	}
	e.tell()
}

// track takes note of which groups local addresses are in.
func (e *Enforcer) track(c compile.Change) {
	for addr, s := range c.Set {
		if _, ok := e.sides[addr]; !ok {
			e.kernel.fresh = append(e.kernel.fresh, addr)
		}
		e.sides[addr] = s
	}
	for _, addr := range c.Gone {
		delete(e.sides, addr)
	}
	e.holdBack(c)
	if len(c.Set)+len(c.Gone) > 0 {
		e.localChanged = true
		e.kernel.look = true // the first may be isolated, or the last no more
	}
}
