package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/cmd/internal/enrol"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/who"
)

// clockOff is how far this host's clock may be from the server's: certificates are made valid an hour ago.
const clockOff = 30 * time.Minute

func (a *app) joinCommand() *cobra.Command {
	s := &setup{app: a}
	var token, name string
	cmd := &cobra.Command{
		Use:   "join ADDRESS[:PORT] --token TOKEN",
		Short: "Make this machine a host of a network that \"overlayctl init\" has made",
		Long: `Make this machine a host of a network that "overlayctl init" has made on a host at ADDRESS, which has printed
the token; "overlayctl tokens create" prints another. This host gets a certificate and a configuration, and overlayd is
enabled and started. The token says which CA the network has: whoever else answers at ADDRESS is told nothing.

What is there already stays as it is: run again, it says so, and goes on where it was interrupted. A host whose
certificate has ended, because it was off for long, joins again and is who it was.`,
		Example: "  overlayctl join 192.0.2.1 --token ov1.…",
		Args:    arguments("ADDRESS"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if token == "-" {
				line, err := bufio.NewReader(io.LimitReader(a.stdin, 1<<10)).ReadString('\n')
				if err != nil && line == "" {
					return fmt.Errorf("--token: read standard input: %w", err)
				}
				token = strings.TrimSpace(line)
			}
			t, err := enrol.ParseToken(token)
			if err != nil {
				return usageError{fmt.Errorf("--token: %w", err)}
			}
			addr, err := joinAddress(args[0])
			if err != nil {
				return usageError{err}
			}
			if name == "" {
				if name, err = os.Hostname(); err != nil {
					return err
				}
			}
			if err := s.prepare(); err != nil {
				return err
			}
			return s.started(s.join(cmd.Context(), addr, t, name), "")
		},
	}
	s.flags(cmd)
	cmd.Flags().StringVar(&token, "token", "", "`token` that lets this host join; \"-\" reads it from standard input, where no other user sees it")
	cmd.Flags().BoolVar(&s.member, "member", false, "run etcd here too, with a token of \"overlayctl tokens create --member\"")
	cmd.Flags().StringVar(&name, "name", "", "`name` of this host in lists (default: its host name)")
	return cmd
}

// joinAddress adds the port that "overlayctl init" sets.
func joinAddress(text string) (string, error) {
	if ip, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return net.JoinHostPort(ip.String(), enrol.DefaultPort), nil
	}
	if host, port, err := net.SplitHostPort(text); err == nil && host != "" && port != "" && !strings.ContainsAny(host+port, "/ ") {
		return text, nil
	}
	if text == "" || strings.ContainsAny(text, "/:[] ") {
		return "", fmt.Errorf("%q is neither an address nor a name: want what \"overlayctl init\" has printed, like 192.0.2.1", text)
	}
	return net.JoinHostPort(text, enrol.DefaultPort), nil
}

// join makes this machine a host of the network that lets hosts join at addr.
func (s *setup) join(ctx context.Context, addr string, token enrol.Token, name string) error {
	if err := s.belongsNowhere(token); err != nil {
		return err
	}
	addrs, err := s.addresses()
	if err != nil {
		return err
	}
	if err := s.openState(); err != nil {
		return err
	}
	client := enrol.Client{Addr: addr, CA: token.CA, Certificate: s.certificate()}
	visit, joined, err := s.visit(ctx, client, token, addrs)
	if err != nil {
		return err
	}
	if err := s.judge(ctx, addr, visit); err != nil {
		return err
	}
	switch {
	case joined:
		s.found("a certificate for this host, valid until %s", client.Certificate.Leaf.NotAfter.UTC().Format(time.DateOnly))
	case s.dryRun:
		s.did("", "would ask", "%s for a certificate, %s", addr, s.path(enrol.HostFile))
	default:
		if err := s.enrol(ctx, visit, addr, token, name); err != nil {
			return err
		}
	}
	if !s.dryRun {
		if err := s.files.Root.Remove(enrol.KeyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if s.exists && (!s.member || s.isMember()) {
		s.found("%s", s.config)
	} else if err := s.writeConfig(ctx, "join", s.hostSettings(visit.Greeting)); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.awaitServing(ctx); err != nil || !s.member || s.dryRun {
		return err
	}
	_, err = fmt.Fprintf(s.stdout, "etcd takes this host in, see overlayctl members list; if it does not, on a host that is a member: overlayctl members add %s\n", visit.Address)
	return err
}

// belongsNowhere refuses a machine that is of another network, or runs the etcd of this one.
func (s *setup) belongsNowhere(token enrol.Token) error {
	leave := fmt.Sprintf("to leave it, systemctl disable --now overlayd, overlayd --cleanup, and remove %s and %s", s.daemon.StateDir, s.config)
	ca, err := certs.Read(s.path(enrol.CAFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case certs.Fingerprint(ca) != token.CA:
		return fmt.Errorf("this host is of another network than the token: its CA is %q, in %s; %s", ca.Subject.CommonName, s.path(enrol.CAFile), leave)
	}
	if other := s.daemon.EtcdEmbedded || isDir(s.path("etcd")); other && !(s.member && s.isMember()) {
		return fmt.Errorf("this host runs etcd for a network, with its data in %s; %s", s.path("etcd"), leave)
	}
	if s.exists && !enrol.Renews(s.daemon.StateDir, s.daemon.Etcd.CertFile) {
		return fmt.Errorf("this host is of a network already, by %s; %s", s.config, leave)
	}
	return nil
}

// isMember says whether this host's configuration has it run etcd beside others.
func (s *setup) isMember() bool {
	return s.exists && s.daemon.EtcdEmbedded && !slices.ContainsFunc(s.daemon.Etcd.Endpoints, func(url string) bool { return !strings.HasPrefix(url, "https://") })
}

// certificate is the one that the host has, may it have ended; nil: none.
func (s *setup) certificate() *tls.Certificate {
	pair, err := enrol.LoadPair(s.path(enrol.HostFile))
	if err != nil {
		return nil
	}
	return &pair
}

// visit asks the server how the network is: by the host's certificate if that is in force, which says that it has joined, or
// by the token.
func (s *setup) visit(ctx context.Context, client enrol.Client, token enrol.Token, addrs []netip.Addr) (v *enrol.Visit, joined bool, err error) {
	key, err := s.key()
	if err != nil {
		return nil, false, err
	}
	if client.Certificate != nil && (!s.member || s.certified(client.Certificate)) {
		v, err = client.Visit(ctx, nil, key, addrs)
		if _, refused := errors.AsType[enrol.Refused](err); err == nil || !refused {
			return v, true, err
		}
	}
	v, err = client.Visit(ctx, &token, key, addrs)
	return v, false, err
}

// certified says whether the certificate is a member's.
func (s *setup) certified(cert *tls.Certificate) bool {
	w, err := who.Parse(cert.Leaf)
	return err == nil && w.Member
}

// key is the one that the certificate is to be for. It is on disk before it is shown: a host that is interrupted after it
// was let in, and before it heard of that, is let in again by it.
func (s *setup) key() (*ecdsa.PrivateKey, error) {
	key, err := certs.ReadKey(s.path(enrol.KeyFile))
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = certs.NewKey(); err != nil || s.dryRun {
		return key, err
	}
	data, err := certs.KeyPEM(key)
	if err == nil {
		_, err = s.files.Write(enrol.KeyFile, data, 0o400)
	}
	return key, err
}

// judge says why this host could not take part in the network, before it is let in.
func (s *setup) judge(ctx context.Context, addr string, v *enrol.Visit) error {
	if off := s.now().Sub(v.Now); off.Abs() > clockOff {
		word := "ahead of"
		if off < 0 {
			word = "behind"
		}
		return fmt.Errorf("this host's clock is %s %s that of %s, and certificates would not be valid here: set it, timedatectl set-ntp true",
			off.Abs().Round(time.Second), word, addr)
	}
	for _, endpoint := range v.Endpoints {
		if err := reachable(ctx, endpoint); err != nil {
			return err
		}
	}
	for _, err := range v.Unproven {
		s.warn([]string{err.Error() + ": a lease that names it would be refused"})
	}
	if v.Network == nil {
		return nil
	}
	n, err := subnet.ParseNetwork(v.Network)
	if err != nil {
		return fmt.Errorf("the network's config: %w", err)
	}
	return s.suits(n)
}

// reachable says why etcd's port does not answer.
func reachable(ctx context.Context, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", u.Host)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("etcd at %s refuses connections, though the host lets others join", u.Host)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("etcd at %s does not answer, though the host lets others join: does a firewall drop TCP %s?", u.Host, u.Port())
	}
	return fmt.Errorf("etcd at %s: %w", u.Host, err)
}

// enrol asks for the certificate, and writes it.
func (s *setup) enrol(ctx context.Context, v *enrol.Visit, addr string, token enrol.Token, name string) error {
	v.Member = s.member
	issued, err := v.Join(ctx, token, s.hostID, name)
	if err != nil {
		return err
	}
	if s.member {
		if err := s.write(enrol.AuthorityFile, issued.Authority, 0o400, "the CA's key, by which this host lets others join"); err != nil {
			return err
		}
	}
	if err := s.write(enrol.CAFile, certs.PEM(issued.CA), 0o644, "the certificate of the CA %q", issued.CA.Subject.CommonName); err != nil {
		return err
	}
	if _, err := s.files.Write(enrol.JoinedFile, []byte(addr+"\n"), 0o644); err != nil {
		return err
	}
	var ips []string
	for _, ip := range issued.Certificate.IPAddresses {
		ips = append(ips, ip.String())
	}
	slices.Sort(ips)
	return s.write(enrol.HostFile, issued.Bundle, 0o400, "a certificate for host %q at %s, which overlayd renews", name, strings.Join(ips, ", "))
}

// hostSettings are those of a host that joins.
func (s *setup) hostSettings(g enrol.Greeting) []setting {
	list := []setting{{"The etcd of the network.", "etcd-endpoints", g.Endpoints}}
	if g.Prefix != s.daemon.Etcd.Prefix {
		list = append(list, setting{"", "etcd-prefix", g.Prefix})
	}
	list = append(list, s.certificates()...)
	if s.member {
		list = append(list,
			setting{"This host runs etcd too, beside those above.", "etcd-embedded", true},
			setting{"", "etcd-embedded-listen", net.JoinHostPort(g.Address.String(), etcdPort)},
			setting{"Here other hosts join with a token, and renew their certificates.", "join-listen", ":" + enrol.DefaultPort},
		)
	}
	return append(list, s.common()...)
}
