package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/cmd/internal/agent"
	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet/etcdembed"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/leasecache"
	"github.com/overlayd/overlayd/subnet/who"
)

// retryEtcd is between two attempts to have etcd run, and two questions whether this host has been added to its members.
const retryEtcd = time.Second

// embed runs an etcd in this process until ctx ends. A host that finds etcd at others can do without its own: until it is
// added to the members, while its disk is full, or when it is removed from them.
func (c *config) embed(ctx context.Context, g *errgroup.Group, client *etcdstore.Client, metrics prometheus.Registerer) error {
	cfg, err := c.member(metrics)
	if err != nil {
		return err
	}
	if c.hasOthers(cfg) {
		g.Go(func() error { return c.keepEtcd(ctx, client, cfg) })
		return nil
	}
	server, err := etcdembed.Start(ctx, cfg)
	if err != nil && ctx.Err() != nil {
		return nil // told to end before etcd served
	}
	if err != nil {
		return err
	}
	g.Go(func() error { return c.serveEtcd(ctx, server) })
	return nil
}

// startEmbedded runs an etcd until what it returns is called: none where others do.
func (c *config) startEmbedded(ctx context.Context) (end func(), err error) {
	cfg, err := c.member(nil)
	if err != nil || c.hasOthers(cfg) {
		return func() {}, err
	}
	server, err := etcdembed.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return server.Close, nil
}

// member is this host's etcd. It has room for others if the host's certificate is a member's: they are heard at the port
// after that for the hosts.
func (c *config) member(metrics prometheus.Registerer) (etcdembed.Config, error) {
	cfg := etcdembed.Config{
		Dir: filepath.Join(c.stateDir, "etcd"), Name: etcdstore.MemberName(c.hostName),
		Listen: c.listen, Socket: settings.EtcdSocket(c.runDir), Log: c.log,
		CAFile: c.etcd.CAFile, CertFile: c.etcd.CertFile, KeyFile: c.etcd.KeyFile, Prefix: c.prefix, Registerer: metrics,
	}
	if cfg.CertFile == "" || cfg.Listen == "" {
		return cfg, nil
	}
	cert, err := certs.Read(cfg.CertFile)
	if err != nil {
		return cfg, err
	}
	w, err := who.Parse(cert)
	at, notIP := netip.ParseAddrPort(settings.ListenAddress(cfg.Listen))
	if err == nil && w.Member && notIP == nil {
		cfg.Peers = netip.AddrPortFrom(at.Addr(), at.Port()+1).String()
	}
	return cfg, err
}

// hasOthers says whether all endpoints of the configuration are elsewhere: then there are members without this host.
func (c *config) hasOthers(cfg etcdembed.Config) bool {
	return cfg.Peers != "" && !slices.ContainsFunc(c.etcd.Endpoints, func(endpoint string) bool {
		u, err := url.Parse(endpoint)
		return err != nil || u.Scheme != "https" || cfg.Reaches(u.Host)
	})
}

// keepEtcd has etcd run until ctx ends, or the host is removed from the members.
func (c *config) keepEtcd(ctx context.Context, client *etcdstore.Client, cfg etcdembed.Config) error {
	said := ""
	for ctx.Err() == nil {
		err := c.joinMembers(ctx, client, &cfg)
		var server *etcdembed.Server
		if err == nil {
			server, err = etcdembed.Start(ctx, cfg)
		}
		if err == nil {
			said = ""
			err = c.serveEtcd(ctx, server)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != said {
			c.log.Warn("this host does not run etcd: others do", "err", err)
			said = err.Error()
		}
		if errors.Is(err, etcdembed.ErrRemoved) {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryEtcd):
		}
	}
	return nil
}

// joinMembers finds out which members this host joins, if it has no data yet. It is an error that nobody has added it.
func (c *config) joinMembers(ctx context.Context, client *etcdstore.Client, cfg *etcdembed.Config) error {
	if cfg.HasData() {
		return nil
	}
	peers, err := cfg.PeerURLs()
	if err != nil {
		return err
	}
	var added bool
	if cfg.Join, added, err = client.Others(ctx, peers); err == nil && !added {
		at := strings.TrimPrefix(peers[0], "https://")
		return fmt.Errorf("nobody has added it to the members: on a host that is one, overlayctl members add %s", at)
	}
	return err
}

// serveEtcd keeps etcd until ctx ends.
func (c *config) serveEtcd(ctx context.Context, server *etcdembed.Server) error {
	defer server.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-server.Err():
		if errors.Is(err, etcdembed.ErrRemoved) {
			err = fmt.Errorf("%w: in etcd-endpoints, set where etcd is; then either set etcd-embedded: false, or, to have this host added again, remove %s",
				err, filepath.Join(c.stateDir, "etcd"))
		}
		return err
	}
}

// removeFirst is what others have to do before they can be members again.
const removeFirst = "other hosts that were members, with data in %s, are to remove them first\n"

// forceNewCluster makes this host the only member of its etcd, and ends: what others had alone is lost.
func (c *config) forceNewCluster(ctx context.Context, w io.Writer) error {
	cfg, state, err := c.offline()
	if err != nil {
		return err
	}
	defer state.Close()
	if !cfg.HasData() {
		return fmt.Errorf("this host has no data of etcd in %s", cfg.Dir)
	}
	cfg.ForceNew, cfg.Listen, cfg.Peers = true, "", "" // should others live after all: they are not heard
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	server, err := etcdembed.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer server.Close()
	_, err = fmt.Fprintf(w, "this host is etcd's only member: start overlayd; "+removeFirst, cfg.Dir)
	return err
}

// restoreEtcd makes etcd's data from a snapshot, and ends.
func (c *config) restoreEtcd(file string, w io.Writer) error {
	f, err := os.Open(file) // before this is not root any more
	if err != nil {
		return err
	}
	defer f.Close()
	cfg, state, err := c.offline()
	if err != nil {
		return err
	}
	defer state.Close()
	if err := etcdembed.Restore(cfg, f); err != nil {
		if errors.Is(err, etcdembed.ErrData) {
			err = fmt.Errorf("%w: move it away first", err)
		}
		return err
	}
	// This host is sure of which etcd is the right one; the others find out.
	cache, last := leasecache.Open(c.stateDir, state.HostID, leasecache.Now)
	cache.Config(last.Config, 0)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := errors.Join(cache.Run(over), cache.Err()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "restored %s: start overlayd, and remove and revoke again who was since (overlayctl hosts list, tokens list); "+removeFirst, filepath.Join(cfg.Dir, "data"), cfg.Dir)
	return err
}

// offline is the etcd of a daemon that does not run. From here on this process is who the daemon is, so that its files are too.
func (c *config) offline() (cfg etcdembed.Config, state *agent.State, err error) {
	if !c.embedded {
		return cfg, nil, errors.New("this host runs no etcd: etcd-embedded is not set")
	}
	info, err := os.Stat(c.stateDir)
	if err != nil {
		return cfg, nil, err
	}
	if owner := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 && owner.Uid != 0 {
		gid := int(owner.Gid)
		if err := errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(int(owner.Uid))); err != nil {
			return cfg, nil, fmt.Errorf("become the owner of %s: %w", c.stateDir, err)
		}
	}
	if cfg, err = c.member(nil); err != nil {
		return cfg, nil, err
	}
	cfg.Socket = filepath.Join(cfg.Dir, "offline.sock") // the daemon's is where systemd makes a directory for it
	state, err = agent.OpenState(c.stateDir, agent.MachineID(), c.log)
	return cfg, state, err
}
