package etcdembed

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	s, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func dial(t *testing.T, s *Server) *clientv3.Client { return dialTo(t, s.Endpoint()) }

func dialTo(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { busy.Close() })
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"no address":      {Config{Dir: t.TempDir()}, "want host:port"},
		"no port":         {Config{Dir: t.TempDir(), Listen: "127.0.0.1"}, "want host:port"},
		"a name":          {Config{Dir: t.TempDir(), Listen: "http://etcd.example:1"}, "must be an IP address"},
		"unknown scheme":  {Config{Dir: t.TempDir(), Listen: "tcp://127.0.0.1:0"}, `"tcp" is neither`},
		"https, no cert":  {Config{Dir: t.TempDir(), Listen: "https://127.0.0.1:0"}, "https needs a certificate"},
		"http and a cert": {Config{Dir: t.TempDir(), Listen: "http://127.0.0.1:0", CertFile: "a", KeyFile: "b"}, "use https"},
		"address in use":  {Config{Dir: t.TempDir(), Listen: busy.Addr().String()}, busy.Addr().String() + ": bind: address already in use"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Start(t.Context(), tc.cfg)
			if err == nil {
				s.Close()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
		})
	}
}

// TestSocket serves its user and root alone on a unix socket, also where one is left of who was killed, and where there is no
// directory; and never takes it from who lives.
func TestSocket(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "run/etcd.sock")
	if err := os.Mkdir(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	s, err := Start(t.Context(), Config{Dir: t.TempDir(), Socket: socket, UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if want := "unix://" + socket; s.Endpoint() != want {
		t.Errorf("endpoint %s, want %s", s.Endpoint(), want)
	}
	if fi, err := os.Stat(socket); err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", fi, err)
	}
	if _, err := dial(t, s).Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Config{Dir: t.TempDir(), Socket: socket}); err == nil || !strings.Contains(err.Error(), "another etcd listens there") {
		t.Errorf("a second one on the socket: %v", err)
	}
	if _, err := dial(t, s).Get(t.Context(), "k"); err != nil {
		t.Errorf("after a second one came: %v", err)
	}
	s.Close()
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}

	both := start(t, Config{Dir: t.TempDir(), Socket: filepath.Join(t.TempDir(), "new/etcd.sock"), UnsafeNoFsync: true})
	if _, err := dial(t, both).Put(t.Context(), "k", "v"); err != nil || !strings.HasPrefix(both.Endpoint(), "http://127.0.0.1:") {
		t.Errorf("beside a socket: %s, %v", both.Endpoint(), err)
	}
}

func TestRestartKeepsData(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/etcd"
	s := start(t, Config{Dir: dir})
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", fi.Mode(), err)
	}
	put, err := dial(t, s).Put(t.Context(), "k", "v")
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.Close()
	if _, open := <-s.Err(); open {
		t.Error("an error of a server that was closed")
	}

	s = start(t, Config{Dir: dir, Name: "renamed"})
	got, err := dial(t, s).Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 1 || got.Header.ClusterId != put.Header.ClusterId {
		t.Errorf("after the restart: %v, cluster id before %x", got, put.Header.ClusterId)
	}

	other := start(t, Config{Dir: t.TempDir()})
	got, err = dial(t, other).Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if got.Header.ClusterId == put.Header.ClusterId {
		t.Error("two clusters have the same id: clients cannot tell that one was wiped")
	}
}

func TestCloseDoesNotWaitForWatches(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Dir: t.TempDir(), UnsafeNoFsync: true})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dial(t, s).Watch(ctx, "k", clientv3.WithCreatedNotify())
	begin := time.Now()
	s.Close()
	if d := time.Since(begin); d > 4*time.Second { // etcd by itself waits for more than 5 s
		t.Errorf("Close took %v", d)
	}
}
