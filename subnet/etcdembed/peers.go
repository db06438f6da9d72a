package etcdembed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
	etcdmembers "go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"

	"github.com/overlayd/overlayd/subnet/who"
)

// ErrRemoved says that the member was taken out of its cluster, for good: its data are of no use any more.
var ErrRemoved = errors.New("this host is no member of etcd any more")

// peers are the other members: where they are heard, and what they are told of this one.
type peers struct {
	listener net.Listener
	urls     types.URLs // of this member
	http     *http.Server
}

// newPeers listens for the other members; nil: there are none. They are not heard before serve.
func newPeers(cfg Config) (*peers, error) {
	if cfg.Peers == "" {
		return nil, nil
	}
	hosts, err := reachedAt(cfg, cfg.Peers)
	if err != nil {
		return nil, err
	}
	// With timeouts as etcd's own listener for peers has them: a peer that is gone must not hold a stream up.
	plain, err := transport.NewListenerWithOpts(cfg.Peers, "http", transport.WithTimeout(rafthttp.ConnReadTimeout, rafthttp.ConnWriteTimeout))
	if err != nil {
		return nil, err
	}
	each := func(*tls.ClientHelloInfo) (*tls.Config, error) { return cfg.peerTLS() }
	p := &peers{listener: tls.NewListener(plain, &tls.Config{GetConfigForClient: each})}
	for _, host := range hosts {
		p.urls = append(p.urls, url.URL{Scheme: "https", Host: host})
	}
	p.urls.Sort()
	return p, nil
}

// reachedAt is where others reach what listens on an address of this host: there, or, if that is all addresses, at each
// that the certificate names.
func reachedAt(cfg Config, listen string) (hosts []string, err error) {
	at, err := netip.ParseAddrPort(listen)
	if err != nil {
		return nil, errors.New("want an IP address and a port, like 192.0.2.1:2380")
	}
	if !at.Addr().IsUnspecified() {
		return []string{at.String()}, nil
	}
	cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	w, err := who.Parse(cert.Leaf)
	if err != nil {
		return nil, err
	}
	for _, ip := range w.IPs {
		hosts = append(hosts, netip.AddrPortFrom(ip, at.Port()).String())
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("%s names no address at which others reach this host: issue it for one, or give one in place of %s",
			cfg.CertFile, at.Addr())
	}
	return hosts, nil
}

// HasData says whether the member has begun before. What a start leaves that has failed is not enough: with it a member that
// is to join others would make a cluster of its own.
func (cfg Config) HasData() bool {
	files, _ := filepath.Glob(filepath.Join(cfg.Dir, "data/member/wal/*.wal")) // no error: the pattern is good
	return len(files) > 0
}

// PeerURLs are where the other members hear this one.
func (cfg Config) PeerURLs() ([]string, error) {
	hosts, err := reachedAt(cfg, cfg.Peers)
	for i := range hosts {
		hosts[i] = "https://" + hosts[i]
	}
	return hosts, err
}

// Reaches says whether hosts that are told of an address like 192.0.2.1:2379 reach this member.
func (cfg Config) Reaches(address string) bool {
	listen, err := parseListen(cfg.Listen, cfg.CertFile != "")
	if err != nil {
		return false
	}
	hosts, _ := reachedAt(cfg, listen.Host) // none is none
	host, port, err := net.SplitHostPort(address)
	ip, notIP := netip.ParseAddr(host)
	own := host == "localhost" || notIP == nil && ip.IsLoopback()
	return err == nil && (own && port == listen.Port() || slices.Contains(hosts, address))
}

// advertised is where clients reach this member, as it tells them.
func advertised(cfg Config, listen url.URL) (urls []url.URL, err error) {
	if listen.Scheme != "https" {
		return nil, errors.New("a member of several serves the hosts by TLS: give it an address to listen on, a certificate and a CA")
	}
	hosts, err := reachedAt(cfg, listen.Host)
	if err != nil {
		return nil, fmt.Errorf("listen address %s: %w", listen.Host, err)
	}
	for _, host := range hosts {
		urls = append(urls, url.URL{Scheme: "https", Host: host})
	}
	return urls, nil
}

// peerTLS reads the files anew, so that certificates may be renewed while etcd runs.
func (cfg Config) peerTLS() (*tls.Config, error) {
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem) // if there is none in it nobody is let in
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		VerifyConnection: func(s tls.ConnectionState) error {
			peer, err := who.Parse(s.PeerCertificates[0])
			if err == nil && !peer.Member {
				err = fmt.Errorf("%s is no member of etcd", peer)
			}
			return err
		},
	}, nil
}

// configure has etcd be one of several members, or one that may become that. Then a heartbeat must pass through a network,
// and a slow disk must not look like a dead leader; a member that is still alone takes half a second longer to start.
func (p *peers) configure(ec *embed.Config, cfg Config) {
	ec.TickMs, ec.ElectionMs = 100, 1000
	ec.AdvertisePeerUrls = p.urls
	ec.InitialCluster = cluster(ec.Name, p.urls.StringSlice())
	for i, others := range cfg.Join {
		ec.InitialCluster += "," + cluster(fmt.Sprintf("member%d", i), others) // etcd tells them by their URLs
		ec.ClusterState = embed.ClusterStateFlagExisting
	}
	ec.PeerTLSInfo = transport.TLSInfo{CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, TrustedCAFile: cfg.CAFile, ClientCertAuth: true}
}

// serve hears the other members until close.
func (p *peers) serve(s *Server) {
	p.http = &http.Server{
		Handler:     etcdhttp.NewPeerHandler(s.etcd.GetLogger(), s.etcd.Server),
		ReadTimeout: 5 * time.Minute, // as etcd has it
		ErrorLog:    log.New(io.Discard, "", 0),
	}
	go func() {
		if err := p.http.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
			s.fail(fmt.Errorf("hear the other members: %w", err))
		}
	}()
}

func (p *peers) close() {
	if p == nil {
		return
	}
	if p.http != nil {
		p.http.Close()
	}
	p.listener.Close()
}

// announce tells the cluster where this member hears the others, if it knows it otherwise: a member was alone before, or the
// host has another address. It tries until etcd ends.
func (p *peers) announce(s *Server) {
	server := s.etcd.Server
	for {
		select {
		case <-server.StopNotify():
			return
		case <-server.ReadyNotify():
		}
		me := server.Cluster().Member(server.MemberID())
		if me == nil || slices.Equal(me.PeerURLs, p.urls.StringSlice()) {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), server.Cfg.ReqTimeout())
		now := etcdmembers.RaftAttributes{PeerURLs: p.urls.StringSlice(), IsLearner: me.IsLearner}
		_, err := server.UpdateMember(ctx, etcdmembers.Member{ID: me.ID, RaftAttributes: now})
		cancel()
		if err == nil {
			return
		}
		select {
		case <-server.StopNotify():
		case <-time.After(time.Second):
		}
	}
}

// watch tells when etcd ends by itself. It does so, and does not panic, for one reason only: another member has told it that
// it was removed, or it has seen that happen.
func (s *Server) watch() {
	<-s.etcd.Server.StoppingNotify()
	s.fail(ErrRemoved)
}
