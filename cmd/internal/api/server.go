package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a unix socket in bytes: sun_path of unix(7) less its final zero.
const maxSocketPath = 107

// maxMode is the most that a client may send, in bytes.
const maxMode = 16

// drainTime is how long requests may go on when the server is told to stop.
const drainTime = 2 * time.Second

// Source knows the daemon's state. It is asked for each request, from any goroutine.
type Source interface {
	Status() Status
	Ready() (ready bool, stage string)
	Endpoints() []Endpoint
	Denials() Denials
	SetFastPath(FastPathMode)
	RotateWireGuard(ctx context.Context, network string) (publicKey string, err error)
}

// ServerConfig says what a Server serves, and where.
type ServerConfig struct {
	Socket   string // path of the unix socket; its directory is made if need be
	HTTP     string // TCP address of health and metrics; empty: none
	Gatherer prometheus.Gatherer
	Log      *slog.Logger
}

// Server serves the local API on a unix socket, and health and metrics over HTTP.
type Server struct {
	cfg    ServerConfig
	lock   *os.File
	socket net.Listener
	http   net.Listener // nil: off
}

// NewServer opens the server's sockets, at which clients wait for Run. It fails if another daemon serves the same
// directory, but takes over the socket that a dead one left. A Server that is not Run must be closed.
func NewServer(cfg ServerConfig) (*Server, error) {
	s := &Server{cfg: cfg}
	if err := s.listen(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Server) listen() error {
	path := s.cfg.Socket
	if len(path) > maxSocketPath {
		return fmt.Errorf("socket %s: the path has %d bytes and may have %d: choose a shorter --run-dir",
			path, len(path), maxSocketPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make --run-dir: %w", err)
	}
	var err error
	if s.lock, err = lockDir(dir); err != nil {
		return err
	}
	// We hold the lock: whoever made this socket is dead.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	if s.socket, err = net.Listen("unix", path); err != nil {
		return fmt.Errorf("local API: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return fmt.Errorf("local API: %w", err)
	}
	if s.cfg.HTTP == "" {
		return nil
	}
	if s.http, err = net.Listen("tcp", s.cfg.HTTP); err != nil {
		return fmt.Errorf("--http %s: %w", s.cfg.HTTP, err)
	}
	return nil
}

// lockWithin is how long the lock is waited for: a daemon that was killed while it began a command leaves the command's process,
// which has the lock until it executes.
const lockWithin = time.Second

// lockDir locks a directory until the file is closed or the process dies. A lock, unlike a trial connection, also
// decides between two daemons that start at once.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockWithin); ; time.Sleep(lockWithin / 50) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			break
		}
	}
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("another overlayd is running with --run-dir %s: stop it, or give this one its own --run-dir and --state-dir", dir)
	}
	return nil, fmt.Errorf("lock %s: %w", dir, err)
}

// Addr is the address of health and metrics; nil if they are off.
func (s *Server) Addr() net.Addr {
	if s.http == nil {
		return nil
	}
	return s.http.Addr()
}

// Close closes the sockets and removes the one in the file system. It may be called again.
func (s *Server) Close() {
	for _, l := range []net.Listener{s.socket, s.http} {
		if l != nil {
			l.Close()
		}
	}
	// Last, so that the next daemon's socket is not the one that is removed.
	if s.lock != nil {
		_ = unix.Flock(int(s.lock.Fd()), unix.LOCK_UN) // a child that is being started has it open too
		s.lock.Close()
	}
}

// Run serves what source knows until ctx ends, and closes the server.
func (s *Server) Run(ctx context.Context, source Source) error {
	defer s.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serve(ctx, s.socket, local(source)) })
	if s.http != nil {
		g.Go(func() error { return s.serve(ctx, s.http, s.public(source)) })
	}
	return g.Wait()
}

func (s *Server) serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, peer{}, c) },
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if server.Shutdown(drain) != nil {
			server.Close()
		}
	})
	err := server.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// local is what the unix socket serves.
func local(source Source) http.Handler {
	mux := http.NewServeMux()
	serve := func(what string, get func() any) {
		mux.HandleFunc("GET /v1/"+what, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			// An error is the client's going away: there is nobody left to tell.
			_ = json.NewEncoder(w).Encode(get())
		})
	}
	serve("status", func() any { return source.Status() })
	serve("endpoints", func() any { return source.Endpoints() })
	serve("denials", func() any { return source.Denials() })
	mux.HandleFunc("PUT /v1/fast-path", func(w http.ResponseWriter, r *http.Request) {
		if !mayChange(r) {
			answer(w, http.StatusForbidden, "only root may change anything")
			return
		}
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMode))
		mode, wrong := ParseFastPathMode(string(text))
		if err := cmp.Or(err, wrong); err != nil {
			answer(w, http.StatusBadRequest, err.Error())
			return
		}
		source.SetFastPath(mode)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /v1/wireguard/rotate", rotate(source))
	return mux
}

// peer is what a request's context has the connection by.
type peer struct{}

// mayChange says whether a request is root's, or of the daemon's own user: the socket's group may ask, and no more.
func mayChange(r *http.Request) bool {
	c, ok := r.Context().Value(peer{}).(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	failed := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return failed == nil && err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
}

// public is what HTTP serves: what monitoring needs, and nothing that names a secret.
func (s *Server) public(source Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		ready, stage := source.Ready()
		if !ready {
			answer(w, http.StatusServiceUnavailable, stage)
			return
		}
		answer(w, http.StatusOK, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.cfg.Gatherer, promhttp.HandlerOpts{}))
	return mux
}

// answer writes one line of text.
func answer(w http.ResponseWriter, code int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, line+"\n")
}
