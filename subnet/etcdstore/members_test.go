package etcdstore

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet/internal/freeport"

	"github.com/overlayd/overlayd/subnet/etcdembed"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// members are those of an etcd that overlayd runs.
type members struct {
	t     testing.TB
	certs string
}

func newMembers(t testing.TB) members {
	certs := t.TempDir()
	writeCertificates(t, certs)
	return members{t, certs}
}

func (m members) config(host string) etcdembed.Config {
	m.t.Helper()
	return etcdembed.Config{
		Dir: filepath.Join(m.t.TempDir(), "etcd"), Listen: freeport.Addr(m.t), Peers: freeport.Addr(m.t), Name: MemberName(host), UnsafeNoFsync: true,
		CAFile: m.certs + "/ca.pem", CertFile: m.certs + "/server.pem", KeyFile: m.certs + "/server-key.pem",
	}
}

func (m members) start(cfg etcdembed.Config) *etcdembed.Server {
	m.t.Helper()
	s, err := etcdembed.Start(m.t.Context(), cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(s.Close)
	return s
}

// client is that of a host, whose configuration names endpoints.
func (m members) client(endpoints ...string) Config {
	return Config{Endpoints: endpoints, CAFile: m.certs + "/ca.pem", CertFile: m.certs + "/client.pem", KeyFile: m.certs + "/client-key.pem"}
}

// admit starts a member that an operator adds meanwhile, in this order: it waits to be added, as a host does that joins.
func (m members) admit(c *Client, cfg etcdembed.Config) *etcdembed.Server {
	m.t.Helper()
	peer := "https://" + cfg.Peers
	done := make(chan error)
	go func() { done <- c.Admit(m.t.Context(), peer, func(what string) { m.t.Log(cfg.Name, what) }) }()
	var s *etcdembed.Server
	for s == nil {
		others, added, err := c.Others(m.t.Context(), []string{peer})
		switch {
		case err != nil:
			m.t.Fatal(err)
		case added:
			cfg.Join = others
			s = m.start(cfg)
		default:
			time.Sleep(20 * time.Millisecond)
		}
	}
	if err := <-done; err != nil {
		m.t.Fatal(err)
	}
	return s
}

func (m members) names(c *Client) (names []string) {
	m.t.Helper()
	list, err := c.EtcdMembers(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range list {
		if !e.Learner {
			names = append(names, e.Name)
		}
	}
	return names
}

// TestHostsFollowMembers grows an etcd from one member to three while hosts claim leases, kills the first, which is the only
// one that the hosts' configuration names, and replaces it: hosts go on without being told, also those that start anew.
func TestHostsFollowMembers(t *testing.T) {
	t.Parallel()
	m := newMembers(t)
	first, second, third, fourth := m.config("a"), m.config("b"), m.config("c"), m.config("d")
	s1 := m.start(first)
	seeds := []string{"https://" + first.Listen}
	operator := storeOf(t, m.client(seeds...), slog.New(slog.DiscardHandler))
	if err := operator.SetNetwork(t.Context(), []byte(network), 0); err != nil {
		t.Fatal(err)
	}
	s := storeOf(t, m.client(seeds...), slog.New(slog.DiscardHandler))
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	follow := func(c *Client, want ...etcdembed.Config) {
		t.Helper()
		urls := slices.Clone(seeds)
		for _, cfg := range want {
			urls = append(urls, "https://"+cfg.Listen)
		}
		slices.Sort(urls)
		var got []string
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			signal(c.look) // a minute is long
			if got = c.Endpoints(); slices.Equal(got, slices.Compact(urls)) {
				return
			}
		}
		t.Fatalf("the host knows of %v, want %v", got, urls)
	}
	other := 1
	claim := func(at etcdembed.Config) *host {
		t.Helper()
		other++
		id := fmt.Sprintf("h%d", other)
		o := join(t, storeOf(t, m.client("https://"+at.Listen), slog.New(slog.DiscardHandler)), JoinConfig{HostID: id}, fmt.Sprintf("192.0.2.%d", other))
		h.awaitPeers(append(h.peerKeys(), o.awaitHeld("").Own.Record.Key())...)
		return o
	}
	claim(first)
	s2 := m.admit(operator.client, second)
	claim(second)
	m.admit(operator.client, third)
	follow(s.client, second, third)
	if got, want := m.names(operator.client), []string{"a", "b", "c"}; !slices.Equal(got, want) {
		t.Errorf("members %v, want %v", got, want)
	}

	s1.Close()
	claim(third)
	h.awaitHeld(key)
	seen, learned := s.client.learnt()
	view := leasecache.View{Cluster: s.client.known(), Seeds: seen, Members: learned}
	h.stop()
	s = storeOf(t, m.client(seeds...), slog.New(slog.DiscardHandler))
	h = join(t, s, JoinConfig{HostID: "h1", Last: view}, "192.0.2.1")
	h.awaitHeld(key)

	// Another host takes the place of the first.
	operator = storeOf(t, m.client("https://"+second.Listen), slog.New(slog.DiscardHandler))
	list, err := operator.client.EtcdMembers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	operator.client.AskMembers(t.Context(), list)
	if list[0].Err == nil || list[1].Err != nil || !list[0].Is("a") || !list[0].Is(first.Peers) || list[0].Is("127.0.0.2") || list[1].Size == 0 || list[1].Leader == list[2].Leader {
		t.Errorf("members: %+v", list)
	}
	if _, added, err := operator.client.Others(t.Context(), []string{"https://" + first.Peers}); added || err == nil || !strings.Contains(err.Error(), "its data are lost: overlayctl members add "+first.Peers+" --replace "+first.Peers) {
		t.Errorf("a member that begins anew: %t, %v", added, err)
	}
	if err := operator.client.Expel(t.Context(), list[0].ID); err != nil {
		t.Fatal(err)
	}
	m.admit(operator.client, fourth)
	follow(s.client, second, third, fourth)
	s2.Close()
	claim(fourth)
	h.awaitHeld(key)

	// Another host could not be added now, nor one taken away.
	operator = storeOf(t, m.client("https://"+third.Listen), slog.New(slog.DiscardHandler))
	list, err = operator.client.EtcdMembers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := operator.client.Expel(t.Context(), list[1].ID); err == nil || !strings.Contains(err.Error(), "fewer members than a majority") {
		t.Errorf("removing one of the last two: %v", err)
	}
	var backup bytes.Buffer
	if n, err := operator.client.Snapshot(t.Context(), &backup); err != nil || n != int64(backup.Len()) || n%512 != sha256.Size {
		t.Errorf("snapshot of %d bytes: %d, %v", backup.Len(), n, err)
	}
}
