// Package networks has a host in several networks: it begins and ends the agent of each, as the configuration and etcd say, and
// tells the world how they stand together.
package networks

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/agent"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// retryAfter is how long a network is left alone whose agent has ended.
const retryAfter = 10 * time.Second

// Network is one network on this host.
type Network struct {
	*agent.Agent
	Metrics prometheus.Gatherer // its own
	// Leave takes from the kernel, and from runtimes, what the agent has put there: it has ended. Gone says that the network is no more.
	Leave func(gone bool) error
}

// Config is what a Host is made of. Everything is required.
type Config struct {
	Names   []string // of the networks besides the one that has none
	All     bool     // whichever etcd has; then Names are those that the host was in before
	Shared  *agent.Shared
	Follow  func(ctx context.Context, tell func(etcdstore.News), ranges ...string)      // see etcdstore.Store.FollowKeys
	Make    func(name string, share *agent.Share, notify func(string)) (Network, error) // called again for one that has ended
	Metrics prometheus.Gatherer                                                         // of the host
	Notify  func(state string)                                                          // sd_notify(3)
	Log     *slog.Logger
}

// Host is in several networks. All methods but Run may be called at any time.
type Host struct {
	cfg    Config
	wake   chan struct{} // capacity 1: an agent has news
	news   chan etcdstore.News
	ended  chan ended
	names  chan []string
	run    *errgroup.Group
	marked map[string]bool // networks that etcd says there are; of Run alone, as the next
	peered map[string]etcdstore.Peering
	listed bool

	mu     sync.Mutex // guards what follows
	wanted []string
	all    map[string]*member // by name, the unnamed network's too
	ready  bool
	stage  string
	denied error // why it is not known which networks there are
}

// member is a network that the host is in, or tries to be.
type member struct {
	Network
	err     error // why it is not; then there is no Network
	retry   time.Time
	stop    context.CancelFunc
	done    chan struct{}
	settled bool // it was ready, or cannot be, once
}

// ended says that a member has.
type ended struct {
	name string
	m    *member
	err  error
}

// New returns a Host that does nothing until Run.
func New(cfg Config) *Host {
	return &Host{
		cfg: cfg, wake: make(chan struct{}, 1), news: make(chan etcdstore.News, 16), ended: make(chan ended, 16), names: make(chan []string, 1),
		marked: map[string]bool{}, peered: map[string]etcdstore.Peering{}, wanted: cfg.Names, all: map[string]*member{}, stage: "starting",
	}
}

// SetNames says which networks the host is to be in besides the unnamed one, unless it is to be in all. It is not to wait for Run.
func (h *Host) SetNames(names []string) {
	select {
	case <-h.names:
	default:
	}
	h.names <- names
}

// Run has the host in its networks until ctx ends; then it returns nil, and leaves the kernel as it is.
func (h *Host) Run(ctx context.Context) error {
	h.run, ctx = errgroup.WithContext(ctx)
	h.run.Go(func() error {
		h.cfg.Follow(ctx, func(n etcdstore.News) {
			select {
			case h.news <- n:
			case <-ctx.Done():
			}
		}, etcdstore.NetworkDir, etcdstore.PeeredDir)
		return nil
	})
	h.run.Go(func() error { h.loop(ctx); return nil })
	return h.run.Wait()
}

func (h *Host) loop(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		h.bring(ctx)
		h.tell()
		select {
		case <-ctx.Done():
			h.cfg.Notify("STOPPING=1")
			return
		case n := <-h.news:
			h.hear(n)
		case names := <-h.names:
			h.mu.Lock()
			h.wanted = names
			h.mu.Unlock()
		case e := <-h.ended:
			h.end(e)
		case <-h.wake:
		case <-tick.C:
		}
	}
}

// hear takes in which networks there are, and which are peered.
func (h *Host) hear(n etcdstore.News) {
	if n.Err == nil || etcdstore.Denied(n.Err) { // that etcd is away each network says
		h.mu.Lock()
		h.denied = n.Err
		h.mu.Unlock()
	}
	if n.Err != nil {
		return
	}
	if n.Listed {
		before := h.marked
		h.marked, h.peered, h.listed = map[string]bool{}, map[string]etcdstore.Peering{}, true
		defer func() {
			for name := range before { // deleted while etcd was away
				if !h.marked[name] {
					h.leave(name, true)
				}
			}
		}()
	}
	for _, kv := range n.Put {
		if name, ok := strings.CutPrefix(kv.Key, etcdstore.NetworkDir); ok && subnet.ValidNetworkName(name) == nil {
			h.marked[name] = true
		}
		if key, ok := strings.CutPrefix(kv.Key, etcdstore.PeeredDir); ok {
			if p, err := etcdstore.ParsePeering(key); err == nil {
				h.peered[key] = p
			}
		}
	}
	for _, kv := range n.Deleted {
		if name, ok := strings.CutPrefix(kv.Key, etcdstore.NetworkDir); ok && h.marked[name] {
			delete(h.marked, name)
			h.leave(name, true)
		}
		delete(h.peered, strings.TrimPrefix(kv.Key, etcdstore.PeeredDir))
	}
	h.cfg.Shared.SetPeerings(slices.Collect(maps.Values(h.peered)))
}

// in are the networks that the host is to be in, besides the unnamed one.
func (h *Host) in() []string {
	if h.cfg.All && h.listed {
		return slices.Sorted(maps.Keys(h.marked))
	}
	return h.wanted
}

// bring begins what is to be, and ends what is not.
func (h *Host) bring(ctx context.Context) {
	in := append([]string{""}, h.in()...)
	for _, name := range in {
		h.join(ctx, name)
	}
	h.mu.Lock()
	have := slices.Sorted(maps.Keys(h.all))
	h.mu.Unlock()
	for _, name := range have {
		if !slices.Contains(in, name) {
			h.leave(name, h.cfg.All)
		}
	}
}

// join begins a network's agent, unless there is one, or was a moment ago.
func (h *Host) join(ctx context.Context, name string) {
	h.mu.Lock()
	m := h.all[name]
	h.mu.Unlock()
	if m != nil && (m.err == nil || time.Now().Before(m.retry)) {
		return
	}
	settled := m != nil && m.settled
	m = &member{done: make(chan struct{}), settled: settled}
	m.Network, m.err = h.cfg.Make(name, h.cfg.Shared.Join(name), func(state string) {
		if state == "WATCHDOG=1" {
			h.cfg.Notify(state)
			return
		}
		task.Signal(h.wake)
	})
	if m.err != nil {
		h.cfg.Log.Error("cannot begin with a network", "network", name, "err", m.err)
		m.retry, m.settled = time.Now().Add(retryAfter), true
		close(m.done)
	} else {
		var running context.Context
		running, m.stop = context.WithCancel(ctx)
		h.run.Go(func() error {
			err := m.Run(running)
			close(m.done)
			if err != nil {
				h.ended <- ended{name, m, err}
			}
			return nil
		})
	}
	h.mu.Lock()
	h.all[name] = m
	h.mu.Unlock()
}

// end takes in that an agent has ended by itself: no host can serve its network.
func (h *Host) end(e ended) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all[e.name] != e.m {
		return
	}
	h.cfg.Log.Error("a network is not served", "network", e.name, "err", e.err)
	e.m.err, e.m.retry, e.m.settled = e.err, time.Now().Add(retryAfter), true
}

// leave ends a network on this host; gone says that it is no more.
func (h *Host) leave(name string, gone bool) {
	h.mu.Lock()
	m := h.all[name]
	delete(h.all, name)
	h.mu.Unlock()
	if m == nil || m.Leave == nil {
		return
	}
	if m.stop != nil {
		m.stop()
	}
	<-m.done
	h.cfg.Shared.Leave(name)
	err := m.Leave(gone)
	h.cfg.Log.Info("left a network", "network", name, "gone", gone, "err", err)
}

// Gather implements prometheus.Gatherer: of the host, and of all its networks.
func (h *Host) Gather() ([]*dto.MetricFamily, error) {
	all := prometheus.Gatherers{h.cfg.Metrics}
	for _, m := range h.members() {
		if m.Metrics != nil {
			all = append(all, m.Metrics)
		}
	}
	return all.Gather()
}

// members are those that there are, by name.
func (h *Host) members() map[string]*member {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make(map[string]*member, len(h.all))
	for name, m := range h.all {
		c := *m
		all[name] = &c
	}
	return all
}
