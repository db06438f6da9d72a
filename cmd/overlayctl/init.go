package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/cmd/internal/enrol"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/who"
)

// etcdPort is where the embedded etcd serves hosts.
const etcdPort = "2379"

func (a *app) initCommand() *cobra.Command {
	s := &setup{app: a}
	var network string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "init --network CIDR[,CIDR]",
		Short: "Make this machine the first host of a network",
		Long: `Make this machine the first host of a network: it gets a CA, a certificate and a configuration, overlayd is
enabled and started, with etcd in it, and a token is made by which other hosts join ("overlayctl join"). With
--etcd-endpoints and whatever else that etcd wants, the network is in an etcd that is there: then nothing is made but
the configuration, on every host by the same command.

What is there already stays as it is: run again, it says so, and goes on where it was interrupted.`,
		Example: `  overlayctl init --network 10.244.0.0/16
  overlayctl init --network 10.244.0.0/16,fd00:244::/48 --iface eth1
  overlayctl init --etcd-endpoints https://192.0.2.9:2379 --etcd-cafile ca.crt --network 10.244.0.0/16`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Minute {
				return usageError{fmt.Errorf("--token-ttl: %s is too short: at least a minute", ttl)}
			}
			given, err := parseNetwork(network)
			if err != nil {
				return usageError{fmt.Errorf("--network: %w", err)}
			}
			if err := s.prepare(); err != nil {
				return err
			}
			if a.declared.Changed("etcd-endpoints") {
				return s.started(s.initAt(cmd.Context(), given), "")
			}
			return s.started(s.init(cmd.Context(), given, ttl), ", and run this again")
		},
	}
	s.flags(cmd)
	cmd.Flags().StringVar(&network, "network", "", "`range` of the containers' addresses, two with a comma between them for IPv4 and IPv6, or flannel's JSON")
	cmd.Flags().DurationVar(&ttl, "token-ttl", day, "how long the token lets hosts join")
	return cmd
}

// parseNetwork reads a network that somebody has typed; nil: none.
func parseNetwork(text string) (*candidate, error) {
	if text == "" {
		return nil, nil
	}
	raw, err := subnet.NetworkJSON(text)
	if err != nil {
		return nil, err
	}
	n, err := subnet.ParseNetwork(raw)
	if err != nil {
		return nil, err
	}
	return &candidate{raw, n}, backend.Validate(n)
}

// setting is the network as a configuration says it: for people, if they need know nothing but its ranges.
func (c *candidate) setting() any {
	if short, err := subnet.NetworkJSON(c.network.String()); err == nil && bytes.Equal(short, c.raw) {
		return c.network.String()
	}
	return json.RawMessage(c.raw)
}

// init makes the first host of a network.
func (s *setup) init(ctx context.Context, given *candidate, ttl time.Duration) error {
	before, err := parseNetwork(s.daemon.Network)
	switch {
	case err != nil:
		return err
	case !s.exists && given == nil:
		return usageError{errors.New("--network: what range are the containers' addresses to be of? 10.244.0.0/16, if that is free at your place")}
	case s.exists && (s.daemon.JoinListen == "" || before == nil):
		return fmt.Errorf("this host is of a network already, by %s: \"overlayctl status\" shows it", s.config)
	case s.exists && given != nil && given.network.String() != before.network.String():
		return fmt.Errorf("this host's network is %s, by %s, and not %s: \"overlayctl network set\" changes it", before.network, s.config, given.network)
	case s.exists:
		given = before
	}
	addrs, err := s.addresses()
	if err != nil {
		return err
	}
	if err := s.suits(given.network); err != nil {
		return err
	}
	if err := s.openState(); err != nil {
		return err
	}
	authority, err := s.authority()
	if err != nil {
		return err
	}
	if err := s.certify(authority, addrs); err != nil {
		return err
	}
	if s.exists {
		s.found("%s", s.config)
	} else if err := s.writeConfig(ctx, "init", s.memberSettings(addrs[0], given)); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.awaitServing(ctx); err != nil {
		return err
	}
	return s.invite(ctx, authority, addrs[0], ttl)
}

// memberSettings are those of a host that runs etcd for the others.
func (s *setup) memberSettings(addr netip.Addr, n *candidate) []setting {
	list := []setting{
		{"This host runs etcd for the network, for hosts that show a certificate.", "etcd-embedded", true},
		{"", "etcd-embedded-listen", net.JoinHostPort(addr.String(), etcdPort)},
	}
	list = append(list, s.certificates()...)
	return append(append(list,
		setting{"Here other hosts join with a token, and renew their certificates.", "join-listen", ":" + enrol.DefaultPort},
		setting{"The containers' addresses. It is etcd's to change: see overlayctl network set.", "network", n.setting()},
	), s.common()...)
}

// authority is the network's CA, which it makes if there is none.
func (s *setup) authority() (certs.Authority, error) {
	authority, err := certs.ReadAuthority(s.path(enrol.AuthorityFile))
	if err == nil {
		s.found("the CA %q, %s", authority.Certificate().Subject.CommonName, s.path(enrol.AuthorityFile))
		return authority, s.writeCA(authority)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return authority, err
	}
	if _, err := os.Lstat(s.path(enrol.CAFile)); err == nil {
		return authority, fmt.Errorf("this host has joined a network, by the CA in %s: to leave it, systemctl disable --now overlayd, overlayd --cleanup, "+
			"and remove %s and %s", s.path(enrol.CAFile), s.path(enrol.Dir), s.config)
	}
	if authority, err = certs.NewAuthority(s.now()); err != nil {
		return authority, err
	}
	bundle, err := authority.Bundle()
	if err != nil {
		return authority, err
	}
	name := authority.Certificate().Subject.CommonName
	if err := s.write(enrol.AuthorityFile, bundle, 0o400, "the CA %q, whose key stays on hosts that run etcd", name); err != nil {
		return authority, err
	}
	return authority, s.writeCA(authority)
}

// writeCA writes what others may know of the CA, from the file that has all.
func (s *setup) writeCA(authority certs.Authority) error {
	if s.dryRun {
		return nil
	}
	_, err := s.files.Write(enrol.CAFile, certs.PEM(authority.Certificate()), 0o644)
	return err
}

// certify makes the host's own certificate, unless it has one that will do.
func (s *setup) certify(authority certs.Authority, addrs []netip.Addr) error {
	cert, err := certs.Read(s.path(enrol.HostFile))
	if err == nil && cert.CheckSignatureFrom(authority.Certificate()) == nil && s.now().Before(cert.NotAfter) {
		if w, err := who.Parse(cert); err == nil && w.Host == s.hostID {
			s.found("a certificate for %s, valid until %s", w, cert.NotAfter.UTC().Format(time.DateOnly))
			return nil
		}
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	w := who.Who{Name: name, Host: s.hostID, Member: true, IPs: addrs}
	bundle, err := authority.Issue(w, s.now(), enrol.Life)
	if err != nil {
		return err
	}
	return s.write(enrol.HostFile, bundle, 0o400, "a certificate for %s at %s, which overlayd renews", w, addrs)
}

// invite makes a token, if there is none, and says how other hosts join.
func (s *setup) invite(ctx context.Context, authority certs.Authority, addr netip.Addr, ttl time.Duration) error {
	if s.dryRun {
		s.did("", "would make", "a token by which other hosts join for %s", rough(ttl))
		return nil
	}
	client, err := etcdstore.NewClient(etcdstore.Config{Endpoints: []string{settings.EtcdURL(s.daemon.RunDir)}}, s.quiet())
	if err != nil {
		return err
	}
	defer client.Close()
	store, err := client.Store(s.daemon.Etcd.Prefix)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	tokens, err := enrol.Tokens(ctx, store)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if t.State(s.now()) == "" {
			s.found("a token, %s; for one more: overlayctl tokens create", t.ID)
			return nil
		}
	}
	t, err := enrol.CreateToken(ctx, store, certs.Fingerprint(authority.Certificate()), s.now(), ttl, enrol.TokenRecord{})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.stdout, "on each other host, within %s:\n\n  overlayctl join %s --token %s\n\n", rough(ttl), addr, t)
	return err
}

// initAt makes a host of a network in an etcd that is there.
func (s *setup) initAt(ctx context.Context, given *candidate) error {
	if s.exists && s.daemon.JoinListen != "" {
		return fmt.Errorf("this host runs etcd for its network, by %s", s.config)
	}
	raw, _, err := s.network(ctx)
	fresh := errors.Is(err, etcdstore.ErrNoNetwork)
	switch {
	case fresh && given == nil:
		return fmt.Errorf("%w, or give --network", err)
	case fresh:
	case err != nil:
		return err
	default:
		there, err := subnet.ParseNetwork(raw)
		if err != nil {
			return err
		}
		if given != nil && there.String() != given.network.String() {
			return fmt.Errorf("etcd's network is %s, and not %s: without --network this host takes part in it", there, given.network)
		}
		given = &candidate{raw, there}
	}
	if err := s.suits(given.network, s.etcd.Addrs()...); err != nil {
		return err
	}
	if s.exists {
		s.found("%s", s.config)
	} else if err := s.writeConfig(ctx, "init", s.externalSettings(fresh, given)); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	return s.awaitServing(ctx)
}

// externalSettings are those by which the etcd that is there is reached, as they were given to this command.
func (s *setup) externalSettings(fresh bool, n *candidate) []setting {
	list := []setting{{"The etcd of the network.", "etcd-endpoints", s.settings.Etcd.Endpoints}}
	for _, name := range []string{"etcd-prefix", "etcd-cafile", "etcd-certfile", "etcd-keyfile", "etcd-username", "etcd-password-file"} {
		if s.declared.Changed(name) {
			list = append(list, setting{"", name, s.declared.Lookup(name).Value.String()})
		}
	}
	if fresh {
		list = append(list, setting{"The containers' addresses.", "network", n.setting()})
	}
	return append(list, s.common()...)
}
