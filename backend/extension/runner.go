package extension

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/subnet"
)

// ErrRunning is why it is not known yet what PreStartupCommand prints.
var ErrRunning = errors.New("PreStartupCommand is running")

// mostTold is how many bytes PreStartupCommand may print: every host keeps what all the others say.
const mostTold = 2 << 10

// Config is what a Runner is made of.
type Config struct {
	Allowed    bool          // run commands at all
	Timeout    time.Duration // of one; zero: a minute
	Every      time.Duration // between two runs of SyncCommand where nothing happens; zero: ten minutes
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Runner runs commands, one after the other, beside whoever says which: nothing here but Run waits for them. Its process must
// look whether it is Keeping.
type Runner struct {
	cfg     Config
	runs    *prometheus.CounterVec
	wake    chan struct{}
	changed chan struct{}
	applied chan struct{}
	done    func() // closes applied

	mu     sync.Mutex
	pre    []*preStartup // of the network's config in force, and of one that is to be
	site   Site
	stop   context.CancelFunc // kills the command that runs for the site; nil: none does
	left   []Site             // to be shut down
	post   attempt
	sync   attempt
	stale  bool // there is news for SyncCommand
	peers  map[string]*subnet.Record
	events events
}

// preStartup is a PreStartupCommand, and what it printed. One that is asked for again is not run again: while a config is
// waited for, the one in force is looked at too.
type preStartup struct {
	attempt
	text string
	told json.RawMessage
}

// New returns a Runner that does nothing until Run.
func New(cfg Config) (*Runner, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	if cfg.Every == 0 {
		cfg.Every = 10 * time.Minute
	}
	applied := make(chan struct{})
	r := &Runner{
		cfg: cfg, wake: make(chan struct{}, 1), changed: make(chan struct{}, 1), applied: applied,
		done:  sync.OnceFunc(func() { close(applied) }),
		peers: map[string]*subnet.Record{}, events: events{all: map[string]*event{}},
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "overlayd_commands_total", Help: "Commands of the network's configuration that were run, by how they ended.",
		}, []string{"command", "result"}),
	}
	return r, cfg.Registerer.Register(r.runs)
}

// Told is what PreStartupCommand has peers know of this host, a JSON string; nil: nothing. It never waits: it fails with
// ErrRunning until that is known, and with why that cannot be; and if this host runs no commands.
func (r *Runner) Told(c Commands) (json.RawMessage, error) {
	switch {
	case !c.Any():
		return nil, nil
	case !r.cfg.Allowed:
		return nil, errors.New("the network's config has commands for this host to run, and it runs none: " +
			"extension: true in overlayd.yaml lets who may write the config say what runs here")
	case c.PreStartup == "":
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.pre, func(p *preStartup) bool { return p.text == c.PreStartup })
	if i < 0 {
		r.pre = slices.DeleteFunc(r.pre, func(p *preStartup) bool { return p.text != r.site.PreStartup })
		i, r.pre = len(r.pre), append(r.pre, &preStartup{text: c.PreStartup})
		task.Signal(r.wake)
	}
	switch p := r.pre[i]; {
	case p.done:
		return p.told, nil
	case p.err != nil:
		return nil, fmt.Errorf("PreStartupCommand: %w", p.err)
	}
	return nil, ErrRunning
}

// Serve says where commands are to be run from now on. Those of before are told that it is over, if the new ones are others.
func (r *Runner) Serve(s Site) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !s.Any() {
		r.done()
	}
	if s.Equal(r.site) {
		return
	}
	if r.site.Commands != s.Commands {
		if r.stop != nil {
			r.stop()
		}
		if r.site.Shutdown != "" {
			r.left = append(r.left, r.site)
		}
		r.events = events{all: map[string]*event{}}
	}
	r.site, r.post, r.sync, r.stale = s, attempt{}, attempt{}, true
	r.noteAll()
	task.Signal(r.wake)
}

// Peers takes in the peers that changed, by the keys of their leases; nil: gone. What it is given stays as it is.
func (r *Runner) Peers(changed map[string]*subnet.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, peer := range changed {
		before := r.peers[key]
		if peer == nil {
			delete(r.peers, key)
		} else {
			r.peers[key] = peer
		}
		if before != nil && peer != nil && before.Lease.Equal(peer.Lease) { // renewed
			continue
		}
		r.stale = true
		r.note(key)
	}
	if r.site.Any() {
		task.Signal(r.wake)
	}
}

func (r *Runner) noteAll() {
	for _, key := range slices.Sorted(maps.Keys(r.peers)) {
		r.note(key)
	}
}

// note has a peer be an event, if there are commands for those.
func (r *Runner) note(key string) {
	if r.site.SubnetAdd == "" && r.site.SubnetRemove == "" {
		return
	}
	if peer := r.peers[key]; peer != nil && peer.Backend == "extension" {
		r.events.becomes(key, &peer.Lease)
		return
	}
	r.events.becomes(key, nil)
}

// Changed receives after what Told, Problem or PeerErr say changed.
func (r *Runner) Changed() <-chan struct{} { return r.changed }

// Applied is closed once all commands have succeeded, and those for one peer each have been run.
func (r *Runner) Applied() <-chan struct{} { return r.applied }

// Problem says what needs attention; nil: nothing does.
func (r *Runner) Problem() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.site.Any():
		return nil
	case r.post.err != nil:
		return fmt.Errorf("PostStartupCommand: %w", r.post.err)
	case r.sync.err != nil:
		return fmt.Errorf("SyncCommand: %w", r.sync.err)
	}
	return nil
}

// PeerErr says why the command for a peer failed; nil: it did not.
func (r *Runner) PeerErr(key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ev := r.events.all[key]; ev != nil && ev.err != nil {
		return fmt.Errorf("SubnetAddCommand: %w", ev.err)
	}
	return nil
}

// Run runs commands until ctx ends, and kills the one that is running then, or whose network has other commands now.
func (r *Runner) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		within, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
		r.mu.Lock()
		j, at := r.next(time.Now())
		r.stop = nil
		if j.serves {
			r.stop = cancel
		}
		r.mu.Unlock()
		if j.ended != nil {
			r.do(within, j)
		}
		cancel()
		if j.ended != nil {
			continue
		}
		if at.IsZero() {
			at = time.Now().Add(time.Hour)
		}
		timer.Reset(time.Until(at))
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-timer.C:
		}
	}
	return nil
}

// do runs a job, and takes in how it ended.
func (r *Runner) do(ctx context.Context, j job) {
	output, err := "", error(nil)
	if j.text != "" {
		output, err = j.run.do(ctx)
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return // not its fault
	}
	result := "ok"
	if err != nil {
		result = "failed"
	}
	if j.text != "" {
		r.runs.WithLabelValues(j.key, result).Inc()
	}
	r.mu.Lock()
	news := j.ended(output, err, time.Now())
	if r.complete() {
		news = news || !r.isApplied()
		r.done()
	}
	r.mu.Unlock()
	switch {
	case err != nil && news:
		r.cfg.Log.Warn("command failed", "command", j.key, "subnet", j.subnet, "err", err)
	case err == nil && j.retried:
		r.cfg.Log.Info("command succeeds again", "command", j.key, "subnet", j.subnet)
	default:
		r.cfg.Log.Debug("command ended", "command", j.key, "subnet", j.subnet, "err", err)
	}
	if news {
		task.Signal(r.changed)
	}
}

// complete says whether the host is served as it is to be. The caller holds mu.
func (r *Runner) complete() bool {
	return r.site.Any() && r.post.done && r.sync.done && !r.events.untold()
}

func (r *Runner) isApplied() bool {
	select {
	case <-r.applied:
		return true
	default:
		return false
	}
}
