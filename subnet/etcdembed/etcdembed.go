// Package etcdembed runs a member of etcd inside the process, for a cluster of hosts that has no etcd of its
// own. It is the only importer of etcd's server.
package etcdembed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
)

// Config is what an embedded etcd is started with.
type Config struct {
	// Dir holds the data; it is made with mode 0700. It must be the caller's alone: etcd waits for whoever else has it
	// open, without end and without a word.
	Dir string
	// Listen is the address to serve clients on, like 127.0.0.1:2379 or http://127.0.0.1:2379. Without a scheme it
	// is http, or https if there is a certificate. Port 0 takes a free one, which Endpoint then tells. Empty: Socket alone.
	Listen string
	// Socket is the absolute path of a unix socket to serve clients on, who may do everything: it is made with mode 0600,
	// what a process that was killed has left there is removed, and its directory made. Empty: none.
	Socket string
	// Peers is the address to hear other members at, like 192.0.2.1:2380; 0.0.0.0 and :: stand for all that CertFile names.
	// It takes CAFile, and a CertFile that says overlayd:member. Empty: a member alone, for ever.
	Peers string
	// Join are the peer URLs of each of the other members where this one has no data yet and is to join them; they must
	// have added it before. Empty: it makes a cluster of its own.
	Join [][]string
	// ForceNew makes of the data a cluster of this member alone, for when most of the members are lost for good.
	ForceNew bool
	// Name is the member's name; empty: overlayd. Data that was written under another name keeps working.
	Name string
	// CertFile and KeyFile are the server's certificate, needed by https URLs. With CAFile clients must show a
	// certificate that it signed. etcd reads them at the first connection: they are to be looked at before, as
	// etcdstore.NewClient does, which shows the same.
	CAFile, CertFile, KeyFile string
	// Prefix is the network's, like /coreos.com/network: with CAFile, hosts read nothing that is not below it, and change
	// nothing but their own leases. Empty: who is let in may do everything.
	Prefix string
	// Registerer counts what is refused; nil: nobody does.
	Registerer prometheus.Registerer
	// Log receives etcd's own log: its warnings and errors as they are, its information as debug.
	Log *slog.Logger
	// UnsafeNoFsync loses data when the machine crashes. It is for tests.
	UnsafeNoFsync bool
}

// Server is a running etcd member.
type Server struct {
	etcd                 *embed.Etcd
	peers                *peers // nil: none
	endpoint             string
	errc                 chan error
	gate                 *gate // nil: nobody is refused anything
	unfollow, unregister func()

	mu      sync.Mutex
	grpcs   []*grpc.Server
	over    bool // errc is closed
	closing atomic.Bool
	done    chan struct{} // closed when nothing of the server is left
}

// Start runs an etcd member on cfg.Dir and returns when it serves clients; with cfg.Peers at once, for it may have to wait
// for other members: then Ready waits. The context limits only the start.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	listen, err := parseListeners(cfg)
	if err != nil {
		return nil, fmt.Errorf("embedded etcd: %w", err)
	}
	if cfg.CertFile == "" {
		cfg.CAFile = "" // nobody is asked for a certificate
	}
	if err := checkData(filepath.Join(cfg.Dir, "data")); err != nil {
		return nil, fmt.Errorf("embedded etcd: %w", err)
	}
	s := &Server{errc: make(chan error, 1), done: make(chan struct{}), unfollow: func() {}, unregister: func() {}}
	ec := serverConfig(cfg, listen)
	if s.peers, err = newPeers(cfg); err != nil {
		return nil, fmt.Errorf("embedded etcd: address for other members, %s: %w", cfg.Peers, err)
	}
	if s.peers != nil {
		s.peers.configure(ec, cfg)
		if ec.AdvertiseClientUrls, err = advertised(cfg, listen[0]); err != nil {
			s.peers.close()
			return nil, fmt.Errorf("embedded etcd: %w", err)
		}
	}
	if cfg.CertFile != "" && cfg.CAFile != "" && cfg.Prefix != "" {
		s.gate = newGate(cfg)
		if cfg.Registerer != nil {
			s.unregister = func() { cfg.Registerer.Unregister(s.gate.refused) } // it may be started again
		}
		ec.GRPCAdditionalServerOptions = s.gate.options()
	}
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(cfg.Log, &s.closing))
	ec.ServiceRegister = func(g *grpc.Server) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.grpcs = append(s.grpcs, g)
	}
	if s.etcd, err = startEtcd(ec); err != nil {
		s.peers.close()
		s.unregister()
		return nil, fmt.Errorf("embedded etcd on %s, in %s: %w", listen[0].String(), cfg.Dir, err)
	}
	go s.report()
	s.guard()
	if s.peers != nil {
		s.peers.serve(s)
		go s.peers.announce(s)
		go s.watch()
	}
	if cfg.Socket != "" {
		if err := os.Chmod(cfg.Socket, 0o600); err != nil {
			s.Close()
			return nil, fmt.Errorf("embedded etcd: %w", err)
		}
	}
	for _, l := range s.etcd.Clients {
		if tcp, ok := l.Addr().(*net.TCPAddr); ok && listen[0].Port() == "0" {
			listen[0].Host = tcp.String()
		}
	}
	s.endpoint = listen[0].String()
	if s.peers == nil {
		if err := s.Ready(ctx); err != nil {
			s.Close()
			return nil, fmt.Errorf("embedded etcd in %s: %w", cfg.Dir, err)
		}
	}
	return s, nil
}

// guard lets the gate know what etcd holds, from when it serves until unfollow.
func (s *Server) guard() {
	if s.gate == nil {
		return
	}
	etcd := s.etcd.Server
	s.gate.etcd.Store(etcd)
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	following.Go(func() {
		select {
		case <-ctx.Done():
		case <-etcd.ReadyNotify(): // before, it may not have heard yet who was removed
			s.gate.follow(ctx, etcd.KV())
		}
	})
	s.unfollow = func() { cancel(); following.Wait() }
}

// startEtcd returns as an error what etcd panics of, such as a full disk, and has logged with its reason. Nobody
// else may connect to the socket for a moment, so that the process makes no file for others meanwhile.
func startEtcd(ec *embed.Config) (etcd *embed.Etcd, err error) {
	defer syscall.Umask(syscall.Umask(0o077))
	defer func() {
		if why := recover(); why != nil {
			err = fmt.Errorf("%v", why)
		}
	}()
	return embed.StartEtcd(ec)
}

// Ready returns nil when the server serves clients.
func (s *Server) Ready(ctx context.Context) error {
	select {
	case <-s.etcd.Server.ReadyNotify():
		return nil
	case <-s.etcd.Server.StopNotify():
		return errors.New("stopped before it was ready")
	case err := <-s.errc:
		return err
	case <-ctx.Done():
		return fmt.Errorf("not ready: %w", context.Cause(ctx))
	}
}

// Endpoint returns the URL at which clients reach the server: of Listen, or else of Socket.
func (s *Server) Endpoint() string { return s.endpoint }

// Err tells of a failure of the running server; the channel is closed by Close.
func (s *Server) Err() <-chan error { return s.errc }

// report forwards the server's first failure, and none that closing it brings about.
func (s *Server) report() {
	defer close(s.done)
	for err := range s.etcd.Err() {
		select {
		case <-s.etcd.Server.StoppingNotify(): // watch knows why
		default:
			s.fail(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	close(s.errc)
}

func (s *Server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || s.over || s.closing.Load() {
		return
	}
	select {
	case s.errc <- err:
	default:
	}
}

// Close stops the server. Clients' watches are cut at once: waiting for them to end, as etcd does, would take
// seconds. Closing twice is fine.
func (s *Server) Close() {
	if s.closing.CompareAndSwap(false, true) {
		s.unfollow()
		s.mu.Lock()
		grpcs := s.grpcs
		s.mu.Unlock()
		for _, g := range grpcs {
			g.Stop()
		}
		s.peers.close()
		s.etcd.Close()
		s.unregister()
	}
	<-s.done
}

// checkData says for want of what etcd would panic: room on the disk, or of a file that a power loss has left empty.
func checkData(dir string) error {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(dir), &disk); err == nil && disk.Bavail*uint64(disk.Bsize) < 1<<20 {
		return fmt.Errorf("%s: %w: it needs a megabyte to start", dir, syscall.ENOSPC)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "member/wal/*.wal")) // no error: the pattern is good
	if snapshots, _ := filepath.Glob(filepath.Join(dir, "member/snap/*.snap")); len(snapshots) > 0 {
		files = append(files, filepath.Join(dir, "member/snap/db")) // otherwise etcd makes it anew
	}
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.Size() == 0 {
			return fmt.Errorf("%s is empty, as a power loss may leave it: bring %s back from a backup, or remove it, "+
				"which loses the network config and reservations, while hosts claim their subnets again; where others are members, "+
				"set etcd-endpoints to theirs before", file, dir)
		}
	}
	return nil
}

// token names the cluster at its first start. etcd makes the cluster's id from it, so that clients can tell a
// cluster that was wiped and made anew from the one that they knew.
func token() string { return "overlayd-" + rand.Text() }
