package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/enforce"
	"github.com/overlayd/overlayd/backend/extension"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/underlay"
	"github.com/overlayd/overlayd/cmd/internal/agent"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/enforcer"
	"github.com/overlayd/overlayd/cmd/internal/names"
	"github.com/overlayd/overlayd/cmd/internal/networks"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/cmd/internal/version"
	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// networked is the host in its networks, or in the only one.
type networked interface {
	api.Source
	prometheus.Gatherer
	Run(context.Context) error
	PublicIPs() []netip.Addr
}

// parts are what the agents of all networks are made with.
type parts struct {
	held
	client  *etcdstore.Client
	store   *etcdstore.Store // of the unnamed network
	state   *agent.State     // likewise
	records *attachment.Follower
	locals  *enforcer.Containers
	fast    *agent.FastPath
	shared  *agent.Shared // nil: there is one network
	common  *enforce.Common
	certErr func() error
	settled func()
}

// alone is the agent of the only network, whose metrics are the host's.
type alone struct {
	*agent.Agent
	prometheus.Gatherer
}

// networked puts together the part that does the work.
func (c *config) networked(p *parts, metrics *prometheus.Registry) (networked, error) {
	for _, name := range c.remembered() {
		if !slices.Contains(c.joined(), name) {
			if err := c.withdraw(name, false); err != nil {
				return nil, err
			}
		}
	}
	if p.shared == nil {
		a, err := c.agent("", p, nil, c.notify, metrics)
		return alone{a, metrics}, err
	}
	var err error
	p.common, err = enforce.NewCommon(enforce.Config{Namespace: netns.None(), Log: c.log})
	if err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) { // else there are no policies
		return nil, err
	}
	p.shared.Follow(p.locals.Look)
	return networks.New(networks.Config{
		Names: c.joined(), All: c.allOf, Shared: p.shared, Follow: p.store.FollowKeys, Metrics: metrics, Notify: c.notify, Log: c.log,
		Make: func(name string, share *agent.Share, notify func(string)) (networks.Network, error) {
			own := prometheus.NewRegistry() // an agent that ended gives way to another
			registerer := prometheus.Registerer(own)
			if name != "" {
				registerer = prometheus.WrapRegistererWith(prometheus.Labels{"network": name}, own)
			}
			a, err := c.agent(name, p, share, notify, registerer)
			return networks.Network{Agent: a, Metrics: own, Leave: func(gone bool) error { return c.leaveNetwork(name, p, gone) }}, err
		},
	}), nil
}

// joined are the networks that the host is to be in besides the unnamed one, as far as that is known without etcd: those that it is
// told, or was in.
func (c *config) joined() (all []string) {
	if !c.allOf {
		return c.networks
	}
	return c.remembered()
}

// remembered are the networks with a name that the host has been in.
func (c *config) remembered() (all []string) {
	entries, _ := os.ReadDir(filepath.Join(c.stateDir, agent.NetworksDir)) // where there is none it was in none
	for _, e := range entries {
		if subnet.ValidNetworkName(e.Name()) == nil {
			all = append(all, e.Name())
		}
	}
	return all
}

// subnetFileOf is where a network's subnet.env is.
func (c *config) subnetFileOf(name string) string {
	if name == "" {
		return c.subnetFile
	}
	return settings.SubnetPathOf(c.runDir, name)
}

// agent puts together what serves one network.
func (c *config) agent(name string, p *parts, share *agent.Share, notify func(string), metrics prometheus.Registerer) (*agent.Agent, error) {
	store, state, log := p.store, p.state, c.log
	cfg := agent.Config{Fast: agent.Slow{}, Pin: c.pin, Watchdog: watchdog()}
	if name == "" {
		cfg.Fast = p.fast
	} else {
		var err, stateErr error
		store, err = p.store.Named(name)
		state, stateErr = p.state.Named(name)
		if err := errors.Join(err, stateErr, makeDir("run directory", filepath.Dir(c.subnetFileOf(name)))); err != nil {
			return nil, err
		}
		log = c.log.With("overlay", name)
		cfg.Pin, cfg.Watchdog = nil, 0
	}
	answers, err := c.names(name, metrics)
	if err != nil {
		return nil, err
	}
	if answers != nil {
		cfg.Names = answers
	}
	policy, err := c.enforcer(p, name, store, answers, state.Dir(), metrics)
	if err != nil {
		return nil, err
	}
	cfg.Policy = policy
	commands, err := extension.New(extension.Config{Allowed: c.told.Extension, Log: log, Registerer: metrics})
	if err != nil {
		return nil, err
	}
	cache, last := leasecache.Open(state.Dir(), state.HostID, leasecache.Now)
	join := c.join(state, last, c.subnetFileOf(name))
	join.Cache, join.Metrics = cache, metrics
	last.Peers = nil // many, and for the Member alone
	cfg.Network, cfg.Share = name, share
	cfg.Member, cfg.Commands = store.Join(join), commands
	cfg.Kernel, cfg.Firewall, cfg.Sysctls = p.kernel.For(name), p.firewall.For(name), p.sysctls.For(name)
	cfg.Elements, cfg.Unguarded = p.firewall.Elements.For(name), p.firewall.Unguarded
	cfg.Dropped = func() (map[string]uint64, error) { return firewall.Dropped(netns.None()) }
	cfg.FindHost = func(n subnet.Network, inUse []netip.Addr) (agent.Host, error) { return c.findHost(n, inUse, state) }
	cfg.OnLink = func(addrs []netip.Addr) ([]int, error) { return underlay.OnLink(netns.None(), addrs) }
	cfg.EtcdAddrs, cfg.Endpoints = p.client.Addrs, p.client.Endpoints
	cfg.AskEtcd = func(ctx context.Context) error { _, _, err := store.Network(ctx); return err }
	cfg.Vacate = func(s []netip.Prefix) (bool, error) {
		containers, err := p.records.Records()
		if err != nil {
			return false, err
		}
		return agent.Vacate(containers, s)
	}
	cfg.State, cfg.Last, cfg.CacheErr, cfg.CertErr = state, last, cache.Err, p.certErr
	cfg.HostName, cfg.Version, cfg.SubnetFile = c.hostName, version.String(), c.subnetFileOf(name)
	cfg.Shield = agent.Shield{Masquerade: c.masquerade, Guard: c.guard}
	cfg.Notify, cfg.Settled, cfg.Registerer, cfg.Log = notify, p.settled, metrics, log
	return agent.New(cfg), nil
}

// leaveNetwork takes a network from runtimes, so that they begin no more containers in it, and then from the kernel. Of one that is
// no more nothing is remembered.
func (c *config) leaveNetwork(name string, p *parts, gone bool) error {
	err := c.withdraw(name, gone)
	p.kernel.For(name).Replace(nil)
	p.firewall.Elements.For(name).Replace(nil)
	p.firewall.For(name).Set(nil)
	p.sysctls.For(name).Set(nil)
	if p.common != nil {
		err = errors.Join(err, p.common.Leave(name))
	}
	if gone {
		err = errors.Join(err, os.RemoveAll(filepath.Join(c.stateDir, agent.NetworksDir, name)))
	}
	return err
}

// withdraw has runtimes begin no more containers in a network, and takes away its policies, which are for none then.
func (c *config) withdraw(name string, gone bool) error {
	why := fmt.Sprintf("this host is in network %s no more\n", name)
	if gone {
		why = fmt.Sprintf("network %s was deleted\n", name)
	}
	file := c.subnetFileOf(name)
	_, err := enforce.RemoveOf(netns.None(), name)
	if removeErr := os.Remove(file); !errors.Is(removeErr, fs.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	writeErr := renameio.WriteFile(filepath.Join(filepath.Dir(file), agent.RefusalName), []byte(why), 0o644)
	if errors.Is(writeErr, fs.ErrNotExist) { // since the host's start it was in none of the name
		writeErr = nil
	}
	return errors.Join(err, writeErr, names.Withdraw(filepath.Dir(file)))
}
