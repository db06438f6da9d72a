package enrol

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/cmd/internal/certs"
)

// verify says whether a server's chain is the network's: signed by the CA that is known by its hash, for a member, and for
// the address that was dialled.
func (c Client) verify(host string, chain []*x509.Certificate, now time.Time) error {
	i := slices.IndexFunc(chain, func(cert *x509.Certificate) bool { return cert.IsCA && certs.Fingerprint(cert) == c.CA })
	if i < 0 || chain[0].CheckSignatureFrom(chain[i]) != nil {
		return wrongServer("it is not of the network that the token is for: another CA has signed its certificate, " +
			"or somebody is in between; nothing was sent to it")
	}
	leaf := chain[0]
	switch {
	case now.Before(leaf.NotBefore):
		return wrongServer(fmt.Sprintf("its certificate begins to be valid at %s, and it is %s here: this host's clock is at least %s behind",
			leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), leaf.NotBefore.Sub(now).Round(time.Second)))
	case now.After(leaf.NotAfter):
		return wrongServer(fmt.Sprintf("its certificate was valid until %s, and it is %s here: "+
			"this host's clock is %s ahead, or overlayd has not run there for long",
			leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), now.Sub(leaf.NotAfter).Round(time.Second)))
	case !holder(leaf).Member:
		return wrongServer("its certificate is a host's that runs no etcd for the network")
	}
	roots := x509.NewCertPool()
	roots.AddCert(chain[i])
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, DNSName: host, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if names, ok := errors.AsType[x509.HostnameError](err); ok {
		known := slices.Clone(names.Certificate.DNSNames)
		for _, ip := range holder(names.Certificate).IPs {
			known = append(known, ip.String())
		}
		return wrongServer(fmt.Sprintf("its certificate is not for %s: name it by one of %s", host, strings.Join(known, ", ")))
	}
	if err != nil {
		return wrongServer(err.Error())
	}
	return nil
}

// wrongServer is why a server is not believed.
type wrongServer string

func (w wrongServer) Error() string { return string(w) }

// explain says in one line why there is no answer.
func (c Client) explain(err error) error {
	_, port, _ := net.SplitHostPort(c.Addr)
	var dns *net.DNSError
	var closed tls.AlertError
	switch {
	case errors.As(err, &dns):
		return fmt.Errorf("DNS does not know %s: %w", c.Addr, err)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%s refuses connections: does overlayd run there with join-listen, as \"overlayctl init\" sets it?", c.Addr)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return fmt.Errorf("%s does not answer: does a firewall drop TCP %s?", c.Addr, port)
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return fmt.Errorf("%s cannot be reached, no route leads there or nobody has the address: is it the right one?", c.Addr)
	case errors.As(err, &closed), errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("%s has closed the connection: it is no joining endpoint of overlayd, or too many ask it at a time (%w)", c.Addr, err)
	}
	return fmt.Errorf("%s: %w", c.Addr, err)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
