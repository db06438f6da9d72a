package enrol

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/certs"
)

const (
	// dialTime is how long a connection may take to be made: a packet may be lost twice.
	dialTime = 5 * time.Second
	// answerTime is how long the whole of a request may take: wrong secrets are answered late.
	answerTime = 30 * time.Second
)

// Client speaks to one joining endpoint.
type Client struct {
	Addr        string            // host:port
	CA          [sha256.Size]byte // fingerprint of the key of the CA that must have signed the server's certificate
	Certificate *tls.Certificate  // the host's own, may it have ended; nil: it has none
}

// Visit is a host's dealing with a server about a certificate for one new key.
type Visit struct {
	Greeting
	Member   bool // ask to run etcd too
	Unproven []Unproven

	client  Client
	server  []netip.Addr // where the server is, by its certificate
	key     *ecdsa.PrivateKey
	request []byte
	tickets []string
}

// Unproven is why the certificate will not be for an address that the host has.
type Unproven struct {
	Addr netip.Addr
	Err  error
}

func (u Unproven) Error() string {
	return fmt.Sprintf("the certificate is not for %s: %v", u.Addr, u.Err)
}

// Visit asks the server how the network is, with a token or the host's certificate, and shows it the addresses that the
// certificate for the key is to be for.
func (c Client) Visit(ctx context.Context, token *Token, key *ecdsa.PrivateKey, addrs []netip.Addr) (*Visit, error) {
	request, err := certs.NewRequest(key)
	if err != nil {
		return nil, err
	}
	v := &Visit{client: c, key: key, request: request}
	q := hello{Token: token.shown()}
	if q.Key, err = keyFingerprint(&key.PublicKey); err != nil {
		return nil, err
	}
	if v.Greeting, v.server, err = c.greet(ctx, netip.Addr{}, q); err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		if addr == v.Address {
			continue
		}
		if err := v.prove(ctx, addr, q); err != nil {
			v.Unproven = append(v.Unproven, Unproven{addr, err})
		}
	}
	return v, nil
}

// prove speaks to the server from an address.
func (v *Visit) prove(ctx context.Context, from netip.Addr, q hello) error {
	c := v.client
	host, port, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); err != nil || ip.Is4() != from.Is4() {
		i := slices.IndexFunc(v.server, func(ip netip.Addr) bool { return ip.Is4() == from.Is4() })
		if i < 0 {
			return errors.New("the server has no address of that family")
		}
		c.Addr = net.JoinHostPort(v.server[i].String(), port)
	}
	g, _, err := c.greet(ctx, from, q)
	switch {
	case err != nil:
		return err
	case g.Address != from:
		return fmt.Errorf("the server sees %s instead, as if there was NAT between", g.Address)
	}
	v.tickets = append(v.tickets, g.Ticket)
	return nil
}

func (t *Token) shown() *credential {
	if t == nil {
		return nil
	}
	return &credential{t.ID, t.Secret}
}

// Issued is a certificate that was made for a host.
type Issued struct {
	Certificate, CA *x509.Certificate
	Bundle          []byte // the certificate and its key, as a file holds them
	Authority       []byte // what a member lets others join by, as a file holds it; nil: it is none
}

// Join asks for the certificate by a token. The name is what people call the host.
func (v *Visit) Join(ctx context.Context, token Token, host, name string) (Issued, error) {
	return v.ask(ctx, "/v1/join", joinRequest{Token: *token.shown(), Host: host, Name: name, Request: v.request, Tickets: v.tickets, Member: v.Member}, host)
}

// Renew asks for the certificate by the one that the client shows, of the given host.
func (v *Visit) Renew(ctx context.Context, host string) (Issued, error) {
	return v.ask(ctx, "/v1/renew", renewRequest{Request: v.request, Tickets: v.tickets}, host)
}

// ask asks for a certificate, and checks it.
func (v *Visit) ask(ctx context.Context, path string, question any, host string) (out Issued, err error) {
	var answer issued
	if _, err := v.client.post(ctx, netip.Addr{}, path, question, &answer); err != nil {
		return out, err
	}
	wrong := func(err error) (Issued, error) {
		return out, fmt.Errorf("%s has answered with a wrong certificate: %w", v.client.Addr, err)
	}
	if out.CA, err = x509.ParseCertificate(answer.CA); err != nil {
		return wrong(err)
	}
	if certs.Fingerprint(out.CA) != v.client.CA {
		return wrong(errors.New("the CA is another"))
	}
	if out.Certificate, err = x509.ParseCertificate(answer.Certificate); err != nil {
		return wrong(err)
	}
	if err := errors.Join(out.CA.CheckSignatureFrom(out.CA), out.Certificate.CheckSignatureFrom(out.CA)); err != nil {
		return wrong(err)
	}
	if !v.key.PublicKey.Equal(out.Certificate.PublicKey) || holder(out.Certificate).Host != host {
		return wrong(errors.New("it is another host's"))
	}
	if v.Member && (!holder(out.Certificate).Member || len(answer.Authority) == 0) {
		return wrong(errors.New("it is no member's"))
	}
	out.Authority = answer.Authority
	out.Bundle, err = certs.Bundle(out.Certificate, v.key)
	return out, err
}

// greet says hello from one of the host's addresses; the zero Addr: from any.
func (c Client) greet(ctx context.Context, from netip.Addr, q hello) (g Greeting, server []netip.Addr, err error) {
	cert, err := c.post(ctx, from, "/v1/hello", q, &g)
	if err == nil {
		server = holder(cert).IPs
	}
	return g, server, err
}

// post sends a request, once it is known that the server is the right one, and returns the server's certificate.
func (c Client) post(ctx context.Context, from netip.Addr, path string, question, answer any) (server *x509.Certificate, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	body, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	client := http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := c.dial(ctx, from)
				if err == nil {
					server = conn.ConnectionState().PeerCertificates[0]
				}
				return conn, err
			},
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.Addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // it holds the URL, and no more
	}
	if err != nil {
		return nil, c.explain(err)
	}
	defer response.Body.Close()
	return server, c.read(response, answer)
}

// read reads what the server answers, or why it refuses.
func (c Client) read(response *http.Response, answer any) error {
	limited := io.LimitReader(response.Body, maxBody)
	if response.StatusCode == http.StatusOK {
		if err := json.NewDecoder(limited).Decode(answer); err != nil {
			return fmt.Errorf("%s does not answer as overlayd does: %w", c.Addr, err)
		}
		return nil
	}
	var no refused
	if err := json.NewDecoder(limited).Decode(&no); err != nil || no.Error == "" {
		return fmt.Errorf("%s does not answer as overlayd does: %s", c.Addr, response.Status)
	}
	return Refused{c.Addr, no.Error}
}

// Refused is an answer of the right server that says no.
type Refused struct{ Server, Reason string }

func (r Refused) Error() string { return r.Server + " refuses: " + r.Reason }

// dial connects and shakes hands. No byte of a request is sent before the server is known to be the right one.
func (c Client) dial(ctx context.Context, from netip.Addr) (*tls.Conn, error) {
	d := net.Dialer{Timeout: dialTime}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	conn, err := d.DialContext(ctx, "tcp", c.Addr)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         host,
		InsecureSkipVerify: true, // of the system's CAs; see verify
		VerifyConnection:   func(s tls.ConnectionState) error { return c.verify(host, s.PeerCertificates, time.Now()) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c.Certificate == nil {
				return new(tls.Certificate), nil
			}
			return c.Certificate, nil
		},
	}
	secure := tls.Client(conn, conf)
	handshake, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	if err := secure.HandshakeContext(handshake); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}
