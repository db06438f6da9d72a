package etcdstore

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// Config says where etcd is and how to be let in.
type Config struct {
	// Endpoints are URLs like https://192.0.2.1:2379 or unix:///run/etcd.sock; host:port alone counts as http.
	Endpoints []string
	// CAFile signs etcd's certificates; empty: the system's CAs. CertFile and KeyFile are shown to etcd. All three
	// are read again for each connection, so that they can be replaced while the daemon runs.
	CAFile, CertFile, KeyFile string
	// Username and the password in PasswordFile, without its trailing newline, are for etcd's own authentication.
	Username, PasswordFile string
}

// validate checks everything that can be known without a network, and fills in what was left out.
func (c *Config) validate() error {
	if len(c.Endpoints) == 0 {
		return errors.New("no endpoint given")
	}
	secure := c.CAFile != "" || c.CertFile != ""
	endpoints := make([]string, len(c.Endpoints)) // the caller's stay as they are
	for i, raw := range c.Endpoints {
		endpoint, err := parseEndpoint(raw)
		if err != nil {
			return fmt.Errorf("endpoint %q: %w", redact(raw), err)
		}
		if secure && strings.HasPrefix(endpoint, "http:") {
			return fmt.Errorf("endpoint %s is not encrypted, but certificates were given: use https", endpoint)
		}
		endpoints[i] = endpoint
	}
	c.Endpoints = endpoints
	switch {
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("a client certificate and its key go together")
	case (c.Username == "") != (c.PasswordFile == ""):
		return errors.New("a username and a password file go together")
	}
	if _, err := c.tls(c.Endpoints); err != nil {
		return err
	}
	_, err := c.password()
	return err
}

// parseEndpoint returns the endpoint in the form that etcd's client understands.
func parseEndpoint(raw string) (string, error) {
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return "", errors.New("not a URL")
	}
	switch {
	case u.User != nil:
		return "", errors.New("a user does not belong into the URL: give username and password file")
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		return raw, nil
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("scheme %q is none of http, https, unix:///path", u.Scheme)
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("nothing may follow host:port")
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil || host == "" || port == "" {
		return "", errors.New("want host:port, like http://192.0.2.1:2379 or http://[2001:db8::1]:2379")
	}
	return u.Scheme + "://" + u.Host, nil
}

// redact hides a password that somebody put into a URL, also one with an @ in it.
func redact(raw string) string {
	if at := strings.LastIndexByte(raw, '@'); at >= 0 {
		return "***" + raw[at:]
	}
	return raw
}

// tls reads the CA now, and the client's certificate at each handshake. It is nil if nothing is encrypted at the
// endpoints: unix sockets are not.
func (c *Config) tls(endpoints []string) (*tls.Config, error) {
	secure, remote := c.CAFile != "" || c.CertFile != "", false
	for _, e := range endpoints {
		secure = secure || strings.HasPrefix(e, "https:")
		remote = remote || !strings.HasPrefix(e, "unix:")
	}
	if !secure {
		return nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("CA file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA file: no certificate in %s", c.CAFile)
		}
	}
	if _, err := c.certificate(); err != nil {
		return nil, err
	}
	if !remote {
		return nil, nil
	}
	conf.GetClientCertificate = c.show
	return conf, nil
}

// certificate reads the client's certificate; nil if there is none.
func (c *Config) certificate() (*tls.Certificate, error) {
	if c.CertFile == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("client certificate %s with %s: %w", c.CertFile, c.KeyFile, err)
	}
	return &cert, nil
}

// show answers a server that asks for a certificate, which etcd does only if it insists on one. Its refusal would
// come after the handshake (TLS 1.3), as a connection that breaks while the first request is written; so what it would
// refuse ends the handshake here, and says why.
func (c *Config) show(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	cert, err := c.certificate()
	switch {
	case err != nil:
		return nil, err
	case cert == nil:
		return nil, errors.New("etcd asks for a client certificate, and none is configured")
	case time.Now().After(cert.Leaf.NotAfter):
		return nil, fmt.Errorf("etcd would refuse the client certificate %s: it expired at %s", c.CertFile, cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	if err := asked.SupportsCertificate(cert); err != nil {
		return nil, fmt.Errorf("etcd would refuse the client certificate %s: %w", c.CertFile, err)
	}
	return cert, nil
}

// password reads the password file. No error of it says what the file holds.
func (c *Config) password() (string, error) {
	if c.PasswordFile == "" {
		return "", nil
	}
	raw, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	password := strings.TrimRight(string(raw), "\r\n")
	if password == "" {
		return "", fmt.Errorf("password file: %s is empty", c.PasswordFile)
	}
	return password, nil
}
