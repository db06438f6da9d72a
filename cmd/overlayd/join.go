package main

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/cmd/internal/enrol"
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

// joining is where other hosts join and renew.
func (c *config) joining(store *etcdstore.Store, metrics prometheus.Registerer) (*enrol.Server, error) {
	authority, err := c.authority()
	if err != nil {
		return nil, err
	}
	return enrol.NewServer(enrol.ServerConfig{
		Listen: c.joinListen, Authority: authority, Bundle: c.etcd.CertFile, Store: store,
		Endpoints: c.etcdFrom, Prefix: c.prefix, Registerer: metrics, Log: c.log,
	})
}

// etcdFrom are the endpoints of etcd for a host that has reached this one at an address.
func (c *config) etcdFrom(local netip.Addr) []string {
	_, address, ok := strings.Cut(c.listen, "://")
	if !ok {
		address = c.listen
	}
	host, port, err := net.SplitHostPort(address) // etcd has listened on it
	if ip, notIP := netip.ParseAddr(host); err != nil || host == "" || notIP == nil && ip.IsUnspecified() {
		host = local.String()
	}
	return []string{"https://" + net.JoinHostPort(host, port)}
}
