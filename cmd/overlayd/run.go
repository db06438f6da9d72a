package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/bypass"
	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/sysctl"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/backend/userspace"
	"github.com/overlayd/overlayd/cmd/internal/agent"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/enforcer"
	"github.com/overlayd/overlayd/cmd/internal/enrol"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// retryNetwork is the longest wait between attempts to write the network config.
const retryNetwork = 30 * time.Second

// run serves until ctx ends. Everything that can be refused is refused before anything is changed.
func (c *config) run(ctx context.Context) error {
	setGC(starting)
	hangup := hangups()
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	client, store, err := c.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	if err := makeDir("run directory", c.runDir); err != nil {
		return err
	}
	if err := makeDir("subnet file", filepath.Dir(c.subnetFile)); err != nil {
		return err
	}
	var host networked
	server, err := api.NewServer(api.ServerConfig{
		Socket: settings.Socket(c.runDir), HTTP: c.http, Log: c.log,
		Gatherer: prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return host.Gather() }), // once the server runs
	})
	if err != nil {
		return err
	}
	defer server.Close()
	records := attachment.Follow(attachment.DefaultDir, c.log)
	var shared *agent.Shared
	if c.several() {
		shared = agent.NewShared(append([]string{""}, c.joined()...)...)
	}
	held, err := c.kernel(metrics, shared)
	if err != nil {
		return err
	}
	containers := agent.NewContainers(records, held.firewall.Elements)
	state, err := agent.OpenState(c.stateDir, agent.MachineID(), c.log)
	if err != nil {
		return err
	}
	defer state.Close()

	g, ctx := errgroup.WithContext(ctx)
	if c.embedded {
		if err := c.embed(ctx, g, client, metrics); err != nil {
			return err
		}
	}
	if c.joinListen != "" {
		joining, err := c.joining(ctx, g, metrics)
		if err != nil {
			return err
		}
		g.Go(func() error { return joining.Run(ctx) })
	}
	renewer := &enrol.Renewer{StateDir: c.stateDir, Etcd: client.Endpoints, Log: c.log}
	locals := enforcer.NewContainers(records, identity.Dir(c.runDir), c.log)
	fast := c.fast(metrics, records)
	parts := &parts{
		held: held, client: client, store: store, state: state, records: records, locals: locals, fast: fast,
		shared: shared, certErr: renewer.Err, settled: sync.OnceFunc(c.giveBack),
	}
	if host, err = c.networked(parts, metrics); err != nil {
		return err
	}
	renewer.Addrs = host.PublicIPs
	if enrol.Renews(c.stateDir, c.etcd.CertFile) {
		g.Go(func() error { return renewer.Run(ctx) })
	}
	g.Go(func() error { return records.Run(ctx) })
	g.Go(func() error { return containers.Run(ctx) })
	g.Go(func() error { return locals.Run(ctx) })
	g.Go(func() error { return server.Run(ctx, host) })
	g.Go(func() error { return c.initNetwork(ctx, store) })
	g.Go(func() error { return c.reloadOn(ctx, hangup, reloaded{client, fast, host}) })
	g.Go(func() error { return fast.Run(ctx) })
	g.Go(func() error { return held.kernel.Run(ctx) })
	g.Go(func() error { return held.firewall.Run(ctx) })
	g.Go(func() error { return held.sysctls.Run(ctx) })
	g.Go(func() error { return host.Run(ctx) })
	if parts.common != nil {
		g.Go(func() error { return parts.common.Run(ctx) })
	}
	return g.Wait()
}

// held is what holds the kernel, for all networks.
type held struct {
	kernel   *kernel.Reconciler
	firewall firewall.Firewall
	sysctls  *task.Task[sysctl.Param]
}

func (c *config) kernel(metrics prometheus.Registerer, shared *agent.Shared) (h held, err error) {
	var begin <-chan struct{}
	if shared != nil {
		begin = shared.Begun()
	}
	if h.firewall, err = firewall.New(firewall.Config{Log: c.log, Registerer: metrics, Begin: begin}); err != nil {
		return h, err
	}
	if h.sysctls, err = sysctl.New(sysctl.Config{Log: c.log, Registerer: metrics, Begin: begin}); err != nil {
		return h, err
	}
	h.kernel, err = kernel.New(kernel.Config{
		Log: c.log, Registerer: metrics, Begin: begin, RoutesAfter: h.firewall.Applied(), UserSpace: userspace.New(c.runDir, c.log),
	})
	return h, err
}

// fast puts together what carries packets fast. A daemon that may load no programs takes those that its unit has had loaded.
func (c *config) fast(metrics prometheus.Registerer, records *attachment.Follower) *agent.FastPath {
	return agent.NewFastPath(agent.FastConfig{
		Mode: c.fastPath, Records: records, Log: c.log,
		Load: func() (agent.Carrier, error) {
			return c.newFastPath(fastpath.Config{Namespace: netns.None(), Log: c.log, Registerer: metrics})
		},
		Watch: func() (agent.Lookout, error) { return bypass.New(bypass.Config{Namespace: netns.None(), Log: c.log}) },
	})
}

// connect makes ready to reach etcd, and the network in it.
func (c *config) connect() (*etcdstore.Client, *etcdstore.Store, error) {
	client, err := etcdstore.NewClient(c.etcd, c.log)
	if err != nil {
		return nil, nil, err
	}
	store, err := client.Store(c.prefix)
	return client, store, err
}

// operator connects to the embedded etcd as one who may do everything: by its socket.
func (c *config) operator() (*etcdstore.Client, *etcdstore.Store, error) {
	local := *c
	local.etcd.Endpoints = []string{settings.EtcdURL(c.runDir)}
	return local.connect()
}

// makeDir makes a directory that others look into, and finds out now whether it can be written to: later the kernel
// would be programmed already.
func makeDir(what, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("%s: write to %s: %w", what, dir, err)
	}
	return nil
}

// join says who joins the network, and what is left of the last time.
func (c *config) join(state *agent.State, last leasecache.View, subnetFile string) etcdstore.JoinConfig {
	j := etcdstore.JoinConfig{HostID: state.HostID, Host: c.hostName, TTL: c.leaseTTL, Last: last}
	if last.Last != nil {
		j.Previous = last.Last.Subnets()
	} else if env, err := subnet.ReadEnv(subnetFile); err == nil {
		for _, s := range env.Subnets {
			j.Previous = append(j.Previous, s.Masked())
		}
	}
	return j
}

// initNetwork writes the network config that the operator gave, where there is none yet.
func (c *config) initNetwork(ctx context.Context, store *etcdstore.Store) error {
	if c.network == nil {
		return nil
	}
	if c.embedded { // by its socket, for hosts may write none
		client, own, err := c.operator()
		if err != nil {
			return err
		}
		defer client.Close()
		store = own
	}
	for wait := time.Second; ; wait = min(retryNetwork, 2*wait) {
		_, _, err := store.Network(ctx) // where there is one nothing needs to be permitted
		if errors.Is(err, etcdstore.ErrNoNetwork) {
			if err = store.SetNetwork(ctx, c.network, 0); err == nil {
				c.log.Info("wrote the network config", "config", string(subnet.Redact(c.network)))
			}
		}
		switch {
		case err == nil, errors.Is(err, etcdstore.ErrConflict): // there is one
			return nil
		case ctx.Err() == nil:
			c.log.Warn("cannot write the network config yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait/2 + rand.N(wait)/2):
		}
	}
}

// notify tells systemd, if it asked.
func (c *config) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		c.log.Warn("cannot notify systemd", "err", err)
	}
}

// watchdog is how often to tell systemd that the daemon lives: twice as often as it asks.
func watchdog() time.Duration {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0
	}
	return interval / 2
}
