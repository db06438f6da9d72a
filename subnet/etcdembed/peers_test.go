package etcdembed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet/internal/freeport"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// member is the configuration of a host with a certificate that says so.
func (a *authority) member(name string) Config {
	a.t.Helper()
	_, _, cert, key := a.issue(template(name, "overlayd:member"), time.Hour)
	return Config{
		Dir: filepath.Join(a.t.TempDir(), "etcd"), Listen: freeport.Addr(a.t), Peers: freeport.Addr(a.t), Name: name, UnsafeNoFsync: true,
		CAFile: a.file, CertFile: cert, KeyFile: key, Log: slog.New(slog.DiscardHandler),
	}
}

// tls is that of a client that trusts servers and shows a certificate of a CA.
func (a *authority) tls(servers *authority, says *x509.Certificate) *tls.Config {
	a.t.Helper()
	conf := &tls.Config{RootCAs: x509.NewCertPool()}
	conf.RootCAs.AddCert(servers.cert)
	if says != nil {
		cert, key, _, _ := a.issue(says, time.Hour)
		conf.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
	}
	return conf
}

func (a *authority) dial(endpoints ...string) *clientv3.Client {
	a.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: a.tls(a, template("operator", "overlayd:operator")), Logger: zap.NewNop()})
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { c.Close() })
	return c
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
	eventually(t, "it is added", func() (err error) { // etcd wants the members to have been connected for five seconds
		added, err = c.MemberAddAsLearner(t.Context(), []string{"https://" + cfg.Peers})
		return err
	})
	for _, m := range added.Members {
		if m.ID != added.Member.ID {
			cfg.Join = append(cfg.Join, m.PeerURLs)
		}
	}
	s := ready(t, start(t, cfg))
	eventually(t, "it has a vote", func() error {
		_, err := c.MemberPromote(t.Context(), added.Member.ID)
		return err
	})
	return s
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
	eventually(t, "put", func() error {
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
	c := a.dial(s1.Endpoint())
	eventually(t, "it says where it hears others", func() error {
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
	c = a.dial(s2.Endpoint(), s3.Endpoint())
	put(t, c, "two")
	s1 = ready(t, start(t, first)) // has no need of a Join any more
	s1.Close()

	list, err := c.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if m.Name == "first" {
			eventually(t, "it is removed", func() error { _, err := c.MemberRemove(t.Context(), m.ID); return err })
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
	c = a.dial(s2.Endpoint())
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
	c := a.dial(s1.Endpoint())
	s2 := join(t, c, a.member("second"))
	list, err := c.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if m.Name == "second" {
			eventually(t, "it is removed", func() error { _, err := c.MemberRemove(t.Context(), m.ID); return err })
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
	ask := func(conf *tls.Config) error {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
		got, err := client.Get("https://" + cfg.Peers + "/members")
		if err == nil {
			got.Body.Close()
		}
		return err
	}
	for who, conf := range map[string]*tls.Config{
		"a host": a.tls(a, template("host", "overlayd:host/1")), "an operator": a.tls(a, template("operator", "overlayd:operator")),
		"a member of another CA": other.tls(a, template("member", "overlayd:member")), "who shows nothing": a.tls(a, nil),
	} {
		if err := ask(conf); err == nil || !strings.Contains(err.Error(), "tls: ") {
			t.Errorf("%s: %v", who, err)
		}
	}
	if err := ask(a.tls(a, template("first", "overlayd:member"))); err != nil {
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
		if cfg.HasData() {
			t.Errorf("%v, and it has data", err)
		}
	}
}
