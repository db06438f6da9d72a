// Package task holds one whole thing in the kernel as it is wanted: a table of rules, or some parameters. What is known of
// it is how it looks, all together, and it is looked at and written in a goroutine of its own: what takes long, or hangs,
// delays nobody else.
package task

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

const (
	// settle is how long the thing is left alone after the kernel told of a change: who changes it does so step by step.
	settle = 50 * time.Millisecond
	// every is how often it is looked at in any case: the kernel does not tell of all changes.
	every = 5 * time.Minute
	// share is how many times as long as a look took there is none: if others have made looking dear, with twenty thousand
	// rules, it costs a tenth of a core at most.
	share = 9
)

// Config is what a Task is made of.
type Config[T comparable] struct {
	Kind string // of the objects, for the log and the metrics
	// Apply makes the kernel have what is wanted, and nothing else of ours, and tells how many objects it had to change for
	// that. It is called by one goroutine.
	Apply func(ctx context.Context, want []T) (changed int, err error)
	// Listen calls nudge after whatever may have changed the thing, until ctx ends.
	Listen     func(ctx context.Context, nudge func()) error
	Begin      <-chan struct{} // closed when the thing may be touched; nil: at the first Set
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// Status is how far a thing is from what is wanted.
type Status struct {
	Objects int   // wanted
	Healed  int   // how many times since the start an object was brought back that others had changed
	Pending bool  // what is wanted is not there yet
	Err     error // why the thing is not as it is wanted, or does not stay so; it is tried again
}

// Task holds one whole thing. All methods but Run may be called at any time.
type Task[T comparable] struct {
	cfg     Config[T]
	objects prometheus.Gauge
	healed  prometheus.Counter
	errors  prometheus.Counter
	wake    chan struct{}
	nudge   chan struct{}
	changed chan struct{}
	applied chan struct{}
	first   sync.Once

	mu     sync.Mutex
	wanted map[string][]T
	views  map[string]*View[T]
	said   int // how often wanted changed
	done   int // said, when it was last brought there
	status Status

	// All that follows belongs to Run.
	earliest time.Time // for the next look, but if something else is wanted
	failures int       // since the last success
	fights   Fights
	fought   int // rounds of the fight that the last look was one of
}

// New returns a task that does nothing until Run.
func New[T comparable](cfg Config[T]) (*Task[T], error) {
	m, err := NewMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Kind, err)
	}
	return &Task[T]{
		cfg: cfg, wanted: map[string][]T{}, views: map[string]*View[T]{},
		objects: m.Objects.WithLabelValues(cfg.Kind), healed: m.Healed.WithLabelValues(cfg.Kind), errors: m.Errors.WithLabelValues(cfg.Kind),
		wake: make(chan struct{}, 1), nudge: make(chan struct{}, 1), changed: make(chan struct{}, 1), applied: make(chan struct{}),
	}, nil
}

// Set says what a network wants. The thing is to have what any of them wants. Before the first Set it is not touched.
func (t *Task[T]) Set(network string, want []T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have, ok := t.wanted[network]; ok && slices.Equal(have, want) {
		return
	}
	t.wanted[network] = slices.Clone(want)
	t.said++
	if v := t.views[network]; v != nil && v.first == 0 {
		v.first = t.said
	}
	t.status.Objects = len(t.union())
	t.objects.Set(float64(t.status.Objects))
	Signal(t.wake)
}

func (t *Task[T]) union() (all []T) {
	seen := map[T]bool{}
	for _, network := range slices.Sorted(maps.Keys(t.wanted)) {
		for _, o := range t.wanted[network] {
			if !seen[o] {
				seen[o], all = true, append(all, o)
			}
		}
	}
	return all
}

// Status tells how far the thing is. Right after a Set that says something else it is pending.
func (t *Task[T]) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.status
	s.Pending = t.said != t.done
	return s
}

// Changed receives after Status changed.
func (t *Task[T]) Changed() <-chan struct{} { return t.changed }

// Applied is closed when all that was wanted was there for the first time.
func (t *Task[T]) Applied() <-chan struct{} { return t.applied }

// Run brings the thing to what is wanted whenever one of them changes, until ctx ends; then it returns nil and leaves it in
// place. It is to be called once.
func (t *Task[T]) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.cfg.Listen(ctx, func() { Signal(t.nudge) }) })
	group.Go(func() error { t.loop(ctx); return nil })
	if err := group.Wait(); err != nil {
		return fmt.Errorf("%s: %w", t.cfg.Kind, err)
	}
	return nil
}

func (t *Task[T]) loop(ctx context.Context) {
	if t.cfg.Begin != nil {
		select {
		case <-ctx.Done():
			return
		case <-t.cfg.Begin:
		}
	}
	look := time.NewTimer(every)
	defer look.Stop()
	nudge := t.nudge
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-nudge:
			look.Reset(max(settle, time.Until(t.earliest)))
			nudge = nil // not to be put off by each of a thousand changes
			continue
		case <-look.C:
		}
		nudge = t.nudge
		look.Reset(t.bring(ctx))
	}
}

// bring makes the kernel have what is wanted, and returns when to look again if nothing happens.
func (t *Task[T]) bring(ctx context.Context) (next time.Duration) {
	t.mu.Lock()
	want, said, again := t.union(), t.said, t.said == t.done
	t.mu.Unlock()
	if said == 0 {
		return every
	}
	begin := time.Now()
	changed, err := t.cfg.Apply(ctx, want)
	if ctx.Err() != nil {
		return every
	}
	rest := share * time.Since(begin)
	if err != nil {
		rest = max(t.fail(err), min(rest, lastRetry))
		next = rest
	} else {
		if !again {
			changed = 0 // that was for us to change
		}
		t.failures, next = 0, every
		rest = max(rest, t.heal(changed))
	}
	t.earliest = time.Now().Add(rest)
	t.conclude(said, changed, err)
	return next
}

// fail notes a failure, and returns how long to wait.
func (t *Task[T]) fail(err error) time.Duration {
	t.errors.Inc()
	t.cfg.Log.Warn("not programmed", "object", t.cfg.Kind, "err", err)
	t.failures++
	return backoff(t.failures - 1)
}

// heal notes that others had changed objects, and returns how long to let them do it again.
func (t *Task[T]) heal(objects int) time.Duration {
	if t.fought = 0; objects == 0 {
		return 0
	}
	t.healed.Add(float64(objects))
	if t.fought = t.fights.Healed(t.cfg.Log, t.cfg.Kind, objects); t.fought == 0 {
		return 0
	}
	return backoff(t.fought)
}

// backoff grows with each time in a row that something was tried in vain.
func backoff(times int) time.Duration {
	d := Backoff(times)
	return d/2 + rand.N(d/2)
}

// conclude tells what became of what was said.
func (t *Task[T]) conclude(said, healed int, err error) {
	if err == nil {
		t.first.Do(func() { close(t.applied) })
		if t.fought > 0 {
			err = ErrFought
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	before, wasDone := t.status, t.done
	t.status.Err = err
	if err == nil || err == ErrFought {
		t.status.Healed += healed
		t.done = said
		for _, v := range t.views {
			v.bring(said)
		}
	}
	if t.done != wasDone || t.status.Healed != before.Healed || text(err) != text(before.Err) {
		Signal(t.changed)
		for _, v := range t.views {
			Signal(v.changed)
		}
	}
}

func text(err error) string { return fmt.Sprint(err) }
