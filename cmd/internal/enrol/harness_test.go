package enrol

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/subnet/etcdembed"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/who"
)

// member is a host that runs etcd and lets others join, on this computer's loopback.
type member struct {
	t         *testing.T
	store     *etcdstore.Store
	authority certs.Authority
	server    *Server
	metrics   *prometheus.Registry
	stateDir  string
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// newStore is a network in a real etcd.
func newStore(t *testing.T) *etcdstore.Store {
	t.Helper()
	etcd, err := etcdembed.Start(t.Context(), etcdembed.Config{
		Dir: t.TempDir(), Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler), UnsafeNoFsync: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	client, err := etcdstore.NewClient(etcdstore.Config{Endpoints: []string{etcd.Endpoint()}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	store, err := client.Store("/coreos.com/network")
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func newMember(t *testing.T, change func(*ServerConfig)) *member {
	t.Helper()
	authority, err := certs.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m := &member{t: t, store: newStore(t), authority: authority, metrics: prometheus.NewRegistry(), stateDir: t.TempDir()}
	writeState(t, m.stateDir, HostFile, m.bundle(who.Who{Name: "first", Host: "firstid", Member: true, IPs: []netip.Addr{loopback}}, time.Hour))
	cfg := ServerConfig{
		Listen: "127.0.0.1:0", Authority: authority, Bundle: filepath.Join(m.stateDir, HostFile), Store: m.store,
		Endpoints: func(local netip.Addr) []string { return []string{"https://" + local.String() + ":2379"} },
		Prefix:    "/coreos.com/network", Registerer: m.metrics, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	m.serve(cfg)
	return m
}

func (m *member) serve(cfg ServerConfig) {
	m.t.Helper()
	server, err := NewServer(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	m.server = server
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	m.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Error(err)
		}
	})
}

func (m *member) bundle(w who.Who, life time.Duration) []byte {
	m.t.Helper()
	bundle, err := m.authority.Issue(w, time.Now(), life)
	if err != nil {
		m.t.Fatal(err)
	}
	return bundle
}

// pair is a certificate of the network's CA for whom it is told.
func (m *member) pair(w who.Who, life time.Duration) *tls.Certificate {
	m.t.Helper()
	bundle := m.bundle(w, life)
	pair, err := tls.X509KeyPair(bundle, bundle)
	if err != nil {
		m.t.Fatal(err)
	}
	return &pair
}

func (m *member) token(life time.Duration, uses int) Token {
	m.t.Helper()
	token, err := CreateToken(m.t.Context(), m.store, certs.Fingerprint(m.authority.Certificate()), time.Now(), life, TokenRecord{Uses: uses})
	if err != nil {
		m.t.Fatal(err)
	}
	return token
}

func (m *member) client(cert *tls.Certificate) Client {
	return Client{Addr: m.server.Addr().String(), CA: certs.Fingerprint(m.authority.Certificate()), Certificate: cert}
}

// join does what overlayctl does.
func join(t *testing.T, c Client, token Token, host, name string, addrs ...netip.Addr) (Issued, error) {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.Visit(t.Context(), &token, key, addrs)
	if err != nil {
		return Issued{}, err
	}
	return v.Join(t.Context(), token, host, name)
}

func (m *member) record(id string) (HostRecord, bool) {
	m.t.Helper()
	hosts, err := Hosts(m.t.Context(), m.store)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, h := range hosts {
		if h.ID == id {
			return h, true
		}
	}
	return HostRecord{}, false
}

// used is how many hosts have joined by a token.
func (m *member) used(token Token) int {
	m.t.Helper()
	tokens, err := Tokens(m.t.Context(), m.store)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, r := range tokens {
		if r.ID == token.ID {
			return r.Used
		}
	}
	return -1
}

func (m *member) counted(result string) (n float64) {
	m.t.Helper()
	families, err := m.metrics.Gather()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, f := range families {
		for _, metric := range f.Metric {
			if f.GetName() == "overlayd_join_requests_total" && metric.Label[0].GetValue() == result {
				n += metric.Counter.GetValue()
			}
		}
	}
	return n
}

func writeState(t *testing.T, stateDir, name string, data []byte) {
	t.Helper()
	files, err := OpenFiles(stateDir)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Root.Close()
	if _, err := files.Write(name, data, 0o400); err != nil {
		t.Fatal(err)
	}
}

// says wants one line with a text.
func says(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v, want one line with %q", err, want)
	}
}

func until(t *testing.T, what string, f func() error) {
	t.Helper()
	err := errors.New("never asked")
	for range 1000 {
		if err = f(); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: %v", what, err)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
