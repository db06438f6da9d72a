package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

// healDelay is how long a change by others may settle before it is undone. A deleted device tells of thousands of
// deletions: they are healed in one go.
const healDelay = 50 * time.Millisecond

// Config is what a Reconciler needs.
type Config struct {
	Namespace  netns.NsHandle // zero: the current one. It must stay open until Run returns
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	AuditEvery time.Duration         // how often all is compared with the kernel; zero: 5 minutes
	// Begin is closed when what an earlier run left may be touched: where there are several networks, once all have said what they
	// desire; nil: at the first Replace.
	Begin <-chan struct{}
	// RoutesAfter is closed when routes may lead packets into all the rest, and not before; nil: at once.
	RoutesAfter <-chan struct{}
	UserSpace   UserSpace // makes links that the kernel cannot; nil: they fail
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Registerer == nil {
		c.Registerer = prometheus.NewRegistry()
	}
	if c.AuditEvery == 0 {
		c.AuditEvery = 5 * time.Minute
	}
	return c
}

// Reconciler brings a network namespace to the objects it is told, and holds it there. There can be one for a
// namespace. All methods but Run may be called at any time.
type Reconciler struct {
	log     *slog.Logger
	ns      netns.NsHandle
	every   time.Duration
	begin   <-chan struct{} // all waits for it; nil: it is closed
	gate    <-chan struct{} // routes wait for it; nil: it is open
	metrics *metrics
	watch   *watcher
	changed chan struct{}
	wake    chan struct{}

	userSpace       UserSpace
	sessions        atomic.Pointer[map[WGPeerID]Session]
	sessionsChanged bells

	mu     sync.Mutex
	inbox  []said
	greet  []WGPeerID // what Greet was told of
	status Status
	views  map[string]*View

	// All that follows belongs to Run.
	begun   bool // there was a Replace
	conn    *rtnl.Conn
	batch   rtnl.Batch
	flights [2]flight
	refused []*tracked // routes that the kernel refused to replace
	claims  *claims
	links   *linkTable
	pass    pass
	audit   audit
	keeper  keeper
	stale   []leftover
	healAt  time.Time // when to put right what others have changed; zero: nothing is lost
	fights  fights
}

// said is a call of Replace or Update.
type said struct {
	network string
	claims  []Claim
	replace bool
}

// New opens the sockets and listens to the kernel from now on. It fails without CAP_NET_ADMIN.
func New(cfg Config) (*Reconciler, error) {
	cfg = cfg.withDefaults()
	r := &Reconciler{
		log:       cfg.Log,
		ns:        cfg.Namespace,
		every:     cfg.AuditEvery,
		begin:     cfg.Begin,
		gate:      cfg.RoutesAfter,
		views:     map[string]*View{},
		changed:   make(chan struct{}, 1),
		wake:      make(chan struct{}, 1),
		keeper:    newKeeper(),
		userSpace: cfg.UserSpace,
		claims:    newClaims(),
		links:     newLinkTable(),
		audit:     audit{first: true},
	}
	r.sessionsChanged.add()
	if err := r.open(cfg); err != nil {
		r.close()
		return nil, fmt.Errorf("kernel: %w", err)
	}
	return r, nil
}

func (r *Reconciler) open(cfg Config) (err error) {
	if r.conn, err = rtnl.Dial(cfg.Namespace, rtnl.AnswersSize); err != nil {
		return err
	}
	if r.watch, err = newWatcher(cfg.Namespace, r.conn.Port); err != nil {
		return err
	}
	r.metrics, err = newMetrics(cfg.Registerer)
	return err
}

func (r *Reconciler) close() {
	if r.conn != nil {
		r.conn.Close()
	}
	if r.watch != nil {
		r.watch.conn.Close()
	}
}

// Replace makes all the complete state that a network desires. The same object may belong to several owners, and stays
// while one of them has it; different objects with one key are for the owner that came first. Before the first call
// nothing is touched. The claims, of which each owner has one, belong to the Reconciler afterwards.
func (r *Reconciler) Replace(network string, all []Claim) { r.tell(said{network, all, true}) }

// Update replaces the objects of some owners of a network. Before the first Replace it does nothing.
func (r *Reconciler) Update(network string, changed []Claim) { r.tell(said{network, changed, false}) }

// tell counts what is said as pending: nobody may take the kernel for complete before Run has looked.
func (r *Reconciler) tell(s said) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inbox = append(r.inbox, s)
	r.status.InStep = false
	r.status.Pending++
	for _, c := range s.claims {
		r.status.Pending += len(c.Objects)
	}
	if v := r.views[s.network]; v != nil {
		v.status.InStep = false
		v.status.Pending++
		for _, c := range s.claims {
			v.status.Pending += len(c.Objects)
		}
	}
	task.Signal(r.wake)
}

// listen takes over what was said since the last time, and tells whether there is a desired state at all.
func (r *Reconciler) listen() bool {
	r.mu.Lock()
	inbox := r.inbox
	r.inbox = nil
	for _, id := range r.greet {
		r.keeper.greet[id] = true
	}
	r.greet = nil
	r.mu.Unlock()
	for _, s := range inbox {
		switch {
		case s.replace:
			r.claims.replace(s.network, s.claims)
			r.begun = true
		case r.begun:
			r.claims.update(s.network, s.claims)
		}
	}
	return r.begun
}

// Status tells how far the kernel is. Right after Replace or Update it is not in step, and objects are pending.
func (r *Reconciler) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status.clone()
}

// Changed receives after Status changed.
func (r *Reconciler) Changed() <-chan struct{} { return r.changed }

// UnderlayChanged receives after a link, address or route that is not ours changed, or may have.
func (r *Reconciler) UnderlayChanged() <-chan struct{} { return r.watch.underlay.first() }

// Run brings the kernel to the desired state whenever one of them changes, until ctx ends; then it returns nil and
// leaves everything in place. It is to be called once.
func (r *Reconciler) Run(ctx context.Context) error {
	defer r.close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.watch.run(ctx) })
	group.Go(func() error { return r.loop(ctx) })
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("kernel: %w", err)
	}
	return nil
}

func (r *Reconciler) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wake, events, due, looks := r.wake, r.watch.ready, timer.C, r.keeper.looks
		if r.audit.alone {
			wake, events, due, looks = nil, nil, nil, nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.begin:
			r.begin = nil
		case <-r.gate:
			r.gate = nil
		case p := <-r.audit.pieces:
			if !r.compare(ctx, p) {
				continue
			}
		case l := <-looks:
			r.takeLooks(l, time.Now())
		case <-wake:
		case <-events:
		case <-due:
		}
		if r.listen() && r.begin == nil {
			r.work(ctx)
			timer.Reset(time.Until(r.next()))
		}
	}
}
