package etcdembed

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// authority is a CA that certificates of hosts are made with.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	a := authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a authority) path(name string) string { return filepath.Join(a.dir, name) }

// issue writes NAME.crt and NAME.key; the first is the CA's.
func (a authority) issue(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template.SerialNumber, template.Subject = serial, pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(a.path(file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// host issues a certificate that says the URIs.
func (a authority) host(name string, uris ...string) {
	template := &x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, uri := range uris {
		u, err := url.Parse(uri)
		if err != nil {
			a.t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	a.issue(name, template)
}

// member is the configuration of a host that has a certificate of its name.
func (a authority) member(name string) Config {
	a.t.Helper()
	a.host(name, memberURI)
	return Config{
		Dir: filepath.Join(a.t.TempDir(), "etcd"), Listen: freePort(a.t), Peers: freePort(a.t), Name: name, UnsafeNoFsync: true,
		CAFile: a.path("ca.crt"), CertFile: a.path(name + ".crt"), KeyFile: a.path(name + ".key"), Log: slog.New(slog.DiscardHandler),
	}
}

func (a authority) tls(name string) *tls.Config {
	a.t.Helper()
	cert, err := tls.LoadX509KeyPair(a.path(name+".crt"), a.path(name+".key"))
	if err != nil {
		a.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}
}

func (a authority) dial(name string, endpoints ...string) *clientv3.Client {
	a.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: a.tls(name), Logger: zap.NewNop()})
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { c.Close() })
	return c
}

// freePort is an address that nobody listens at for now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func ready(t *testing.T, s *Server) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// join starts a member that c has added as a learner, and has it promoted.
func join(t *testing.T, c *clientv3.Client, cfg Config) *Server {
	t.Helper()
	var added *clientv3.MemberAddResponse
	eventually(t, func() (err error) { // etcd wants the members to have been connected for five seconds
		added, err = c.MemberAddAsLearner(t.Context(), []string{"https://" + cfg.Peers})
		return err
	})
	for _, m := range added.Members {
		if m.ID != added.Member.ID {
			cfg.Join = append(cfg.Join, m.PeerURLs)
		}
	}
	s := ready(t, start(t, cfg))
	eventually(t, func() error {
		_, err := c.MemberPromote(t.Context(), added.Member.ID)
		return err
	})
	return s
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// voters are the names of the members that vote.
func voters(t *testing.T, c *clientv3.Client) (names []string) {
	t.Helper()
	list, err := c.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if !m.IsLearner {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

func put(t *testing.T, c *clientv3.Client, key string) {
	t.Helper()
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := c.Put(ctx, key, "")
		return err
	})
}

// TestThreeMembers has a member alone, which is so since before there were others, become one of three, die, and be one of
// two; what is written stays. One of the two is removed, and most of them are lost for good.
func TestThreeMembers(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	first := a.member("first")
	alone := first
	alone.Peers = ""
	start(t, alone).Close()
	s1 := ready(t, start(t, first))
	c := a.dial("first", s1.Endpoint())
	eventually(t, func() error {
		list, err := c.MemberList(t.Context())
		if err == nil && list.Members[0].PeerURLs[0] != "https://"+first.Peers {
			err = fmt.Errorf("it says that it hears others at %v", list.Members[0].PeerURLs)
		}
		return err
	})
	put(t, c, "one")
	second, third := a.member("second"), a.member("third")
	s2, s3 := join(t, c, second), join(t, c, third)
	if got, want := voters(t, c), []string{"first", "second", "third"}; !slices.Equal(got, want) {
		t.Errorf("members %v, want %v", got, want)
	}

	s1.Close()
	c = a.dial("second", s2.Endpoint(), s3.Endpoint())
	put(t, c, "two")
	s1 = ready(t, start(t, first)) // has no need of a Join any more
	s1.Close()

	list, err := c.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if m.Name == "first" {
			eventually(t, func() error { _, err := c.MemberRemove(t.Context(), m.ID); return err })
		}
	}
	if s, err := Start(t.Context(), first); err == nil {
		err = <-s.Err()
		s.Close()
		if !errors.Is(err, ErrRemoved) {
			t.Errorf("a member that was removed while it was down: %v", err)
		}
	} else if !errors.Is(err, ErrRemoved) {
		t.Errorf("a member that was removed while it was down does not start: %v", err)
	}

	s2.Close()
	s3.Close()
	second.ForceNew = true
	s2 = ready(t, start(t, second))
	c = a.dial("second", s2.Endpoint())
	if got, want := voters(t, c), []string{"second"}; !slices.Equal(got, want) {
		t.Errorf("members %v, want %v", got, want)
	}
	for _, key := range []string{"one", "two"} {
		if got, err := c.Get(t.Context(), key); err != nil || len(got.Kvs) != 1 {
			t.Errorf("%s: %v, %v", key, got, err)
		}
	}
}

// TestRemovedMember tells a member that runs that it was removed.
func TestRemovedMember(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	s1 := ready(t, start(t, a.member("first")))
	c := a.dial("first", s1.Endpoint())
	s2 := join(t, c, a.member("second"))
	list, err := c.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if m.Name == "second" {
			eventually(t, func() error { _, err := c.MemberRemove(t.Context(), m.ID); return err })
		}
	}
	if err := <-s2.Err(); !errors.Is(err, ErrRemoved) {
		t.Error(err)
	}
	put(t, c, "alone")
}

// TestPeersAreMembers has others than members knock where members hear each other.
func TestPeersAreMembers(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	cfg := a.member("first")
	ready(t, start(t, cfg))
	a.host("host", "overlayd:host/1")
	a.host("operator", "overlayd:operator")
	other.host("member", memberURI)
	other.cert = a.cert // the client's view of the server
	ask := func(conf *tls.Config) error {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
		got, err := client.Get("https://" + cfg.Peers + "/members")
		if err == nil {
			got.Body.Close()
		}
		return err
	}
	nobody := a.tls("host")
	nobody.Certificates = nil
	for who, conf := range map[string]*tls.Config{
		"a host": a.tls("host"), "an operator": a.tls("operator"), "a member of another CA": other.tls("member"), "who shows nothing": nobody,
	} {
		if err := ask(conf); err == nil || !strings.Contains(err.Error(), "tls: ") {
			t.Errorf("%s: %v", who, err)
		}
	}
	if err := ask(a.tls("first")); err != nil {
		t.Errorf("a member: %v", err)
	}
	if got, err := http.Get("http://" + cfg.Peers + "/members"); err == nil && got.StatusCode != http.StatusBadRequest {
		t.Errorf("without TLS: %v", got.Status)
	}
}

// TestPeersRefused has addresses for peers that cannot be.
func TestPeersRefused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { busy.Close() })
	for want, edit := range map[string]func(*Config){
		"want an IP address and a port":               func(c *Config) { c.Peers = "localhost:2380" },
		"bind: address already in use":                func(c *Config) { c.Peers = busy.Addr().String() },
		"names no address at which others reach":      func(c *Config) { c.Peers = "0.0.0.0:0" },
		"a member of several serves the hosts by TLS": func(c *Config) { c.CertFile, c.KeyFile, c.CAFile = "", "", "" },
		"cannot fetch cluster info from peer urls":    func(c *Config) { c.Join = [][]string{{"https://127.0.0.1:1"}} },
	} {
		cfg := a.member("first")
		edit(&cfg)
		s, err := Start(t.Context(), cfg)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Start() = %v, want %s", err, want)
		}
	}
}
