package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/cmd/internal/enrol"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// check says what is wrong with the configuration as far as it can be known before anything is started.
func (c *config) check() error {
	client, _, err := c.connect()
	if err != nil {
		return err
	}
	if c.joinListen != "" {
		_, err = c.authority()
	}
	return errors.Join(err, client.Close())
}

func (c *config) authority() (certs.Authority, error) {
	return certs.ReadAuthority(filepath.Join(c.stateDir, enrol.AuthorityFile))
}

// admitWithin is how long a host that joins as a member may take to begin and to catch up.
const admitWithin = 10 * time.Minute

// joining is where other hosts join and renew, which this host lets them as etcd's operator: by its socket.
func (c *config) joining(ctx context.Context, g *errgroup.Group, metrics prometheus.Registerer) (*enrol.Server, error) {
	authority, err := c.authority()
	if err != nil {
		return nil, err
	}
	client, store, err := c.operator()
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { client.Close() })
	return enrol.NewServer(enrol.ServerConfig{
		Listen: c.joinListen, Authority: authority, Bundle: c.etcd.CertFile, Store: store,
		Endpoints: c.etcdFrom, Prefix: c.prefix, Registerer: metrics, Log: c.log,
		Admit: func(addr netip.Addr) {
			g.Go(func() error { c.admit(ctx, client, addr); return nil })
		},
	})
}

// admit has etcd take in a host that has joined as a member. If this is interrupted, overlayctl members add goes on.
func (c *config) admit(ctx context.Context, client *etcdstore.Client, addr netip.Addr) {
	ctx, cancel := context.WithTimeout(ctx, admitWithin)
	defer cancel()
	say := func(what string) { c.log.Info("a host joins etcd", "host", addr, "why", what) }
	if err := client.Admit(ctx, etcdstore.PeerURL(netip.AddrPortFrom(addr, etcdstore.PeerPort)), say); err != nil {
		c.log.Warn("a host has not become a member of etcd: overlayctl members add tries again", "host", addr, "err", err)
		return
	}
	c.log.Info("a host has become a member of etcd", "host", addr)
}

// etcdFrom are the endpoints of etcd for a host that has reached this one at an address.
func (c *config) etcdFrom(local netip.Addr) []string {
	host, port, err := net.SplitHostPort(settings.ListenAddress(c.listen)) // etcd has listened on it
	if ip, notIP := netip.ParseAddr(host); err != nil || host == "" || notIP == nil && ip.IsUnspecified() {
		host = local.String()
	}
	return []string{"https://" + net.JoinHostPort(host, port)}
}
