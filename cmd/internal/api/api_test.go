package api_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/cmd/internal/api"
)

// source is a Source that a test turns.
type source struct {
	mu     sync.Mutex
	status api.Status
	key    string // what RotateWireGuard answers
	rotate error
}

func (s *source) Status() api.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *source) Endpoints() []api.Endpoint { return nil }
func (s *source) Denials() api.Denials      { return api.Denials{} }

func (s *source) RotateWireGuard(context.Context, string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.key, s.rotate
}

func (s *source) SetFastPath(mode api.FastPathMode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.FastPath.Mode = mode
}

func (s *source) Ready() (bool, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status.Ready, s.status.Stage
}

func (s *source) set(status api.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
}

func config(t *testing.T) api.ServerConfig {
	t.Helper()
	return api.ServerConfig{
		Socket:   filepath.Join(t.TempDir(), "o.sock"),
		HTTP:     "127.0.0.1:0",
		Gatherer: prometheus.NewRegistry(),
		Log:      slog.New(slog.DiscardHandler),
	}
}

// serve runs a server until the test ends.
func serve(t *testing.T, cfg api.ServerConfig, src api.Source) *api.Server {
	t.Helper()
	s, err := api.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, src) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func get(t *testing.T, s *api.Server, path string) (int, string) {
	t.Helper()
	response, err := http.Get("http://" + s.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestNewServerRefuses(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { busy.Close() })
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*api.ServerConfig)
		want   string
	}{
		{"path too long", func(c *api.ServerConfig) { c.Socket = "/" + strings.Repeat("x", 107) }, "has 108 bytes and may have 107: choose a shorter --run-dir"},
		{"directory is a file", func(c *api.ServerConfig) { c.Socket = filepath.Join(file, "o.sock") }, "make --run-dir: "},
		{"port in use", func(c *api.ServerConfig) { c.HTTP = busy.Addr().String() }, "--http " + busy.Addr().String() + ": "},
		{"no port", func(c *api.ServerConfig) { c.HTTP = "localhost" }, "--http localhost: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cfg := config(t)
			test.change(&cfg)
			s, err := api.NewServer(cfg)
			if err == nil {
				s.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not say %q", err, test.want)
			}
			if _, err := os.Stat(cfg.Socket); err == nil {
				t.Errorf("%s was left behind", cfg.Socket)
			}
		})
	}
}

func TestNewServerLiveSocket(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	serve(t, cfg, &source{status: api.Status{Host: "first"}})
	if s, err := api.NewServer(cfg); err == nil {
		s.Close()
		t.Fatal("a second server took the socket")
	} else if want := "another overlayd is running with --run-dir " + filepath.Dir(cfg.Socket) + ": "; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %q, want it to begin with %q", err, want)
	}
	if got, err := api.Dial(cfg.Socket).Status(t.Context()); err != nil || got.Host != "first" {
		t.Errorf("the first server answers %q, %v", got.Host, err)
	}
}

func TestNewServerStaleSocket(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if _, err := os.Stat(cfg.Socket); err != nil {
		t.Fatal(err)
	}
	serve(t, cfg, &source{status: api.Status{Host: "second"}})
	if got, err := api.Dial(cfg.Socket).Status(t.Context()); err != nil || got.Host != "second" {
		t.Errorf("the server answers %q, %v", got.Host, err)
	}
	info, err := os.Stat(cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o660 {
		t.Errorf("mode %o, want 660", got)
	}
}

func TestRunEnds(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	s, err := api.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx, &source{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cfg.Socket); err == nil {
		t.Error("the socket was left behind")
	}
	serve(t, cfg, &source{}) // the lock is free again
}

func TestHealth(t *testing.T) {
	t.Parallel()
	src := &source{status: api.Status{Stage: "waiting for etcd"}}
	s := serve(t, config(t), src)
	check := func(path string, wantCode int, wantBody string) {
		t.Helper()
		code, body := get(t, s, path)
		if code != wantCode || body != wantBody {
			t.Errorf("%s: %d %q, want %d %q", path, code, body, wantCode, wantBody)
		}
	}
	check("/healthz", 200, "alive\n")
	check("/readyz", 503, "waiting for etcd\n")
	src.set(api.Status{Ready: true, Stage: "following etcd"})
	check("/readyz", 200, "ready\n")
	src.set(api.Status{Stage: "own subnet is held by another host"})
	check("/readyz", 503, "own subnet is held by another host\n")
	check("/healthz", 200, "alive\n")
	check("/v1/status", 404, "404 page not found\n")
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	registry := prometheus.NewRegistry()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "overlayd_peers", Help: "Peers."})
	gauge.Set(7)
	registry.MustRegister(gauge)
	cfg.Gatherer = registry
	code, body := get(t, serve(t, cfg, &source{}), "/metrics")
	if code != 200 || !strings.Contains(body, "\noverlayd_peers 7\n") {
		t.Errorf("%d %s", code, body)
	}
}

func TestHTTPOff(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.HTTP = ""
	if addr := serve(t, cfg, &source{}).Addr(); addr != nil {
		t.Errorf("Addr = %v, want nil", addr)
	}
}

func TestClientStatus(t *testing.T) {
	t.Parallel()
	expires := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := api.Status{
		Version: "v1", HostID: "id", Ready: true, Problems: []string{"one"}, Subnets: []string{"10.5.1.0/24"},
		Lease:  api.Lease{State: "held", Expires: &expires},
		Kernel: api.Kernel{InStep: true, Objects: map[string]int{"route": 3}},
		Peers:  []api.Peer{{HostID: "peer", Path: "vxlan"}},
	}
	cfg := config(t)
	serve(t, cfg, &source{status: want})
	got, err := api.Dial(cfg.Socket).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestClientExplains(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "o.sock")
	_, err := api.Dial(socket).Status(t.Context())
	want := "overlayd is not running: nothing listens on " + socket + " (see: systemctl status overlayd)"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}

	deaf, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = api.Dial(socket).Status(ctx)
	want = "overlayd does not answer on " + socket + ": context deadline exceeded"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// The one thing that a client may change is read with care.
func TestSetFastPath(t *testing.T) {
	t.Parallel()
	cfg, src := config(t), &source{}
	s := serve(t, cfg, src)
	client := api.Dial(cfg.Socket)
	put := func(body io.Reader) int {
		t.Helper()
		unix := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", cfg.Socket) }}}
		request, err := http.NewRequest(http.MethodPut, "http://overlayd/v1/fast-path", body)
		if err != nil {
			t.Fatal(err)
		}
		response, err := unix.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response.StatusCode
	}
	for _, wrong := range []string{"", "maybe", "off\n", "{}", strings.Repeat("on", 1<<20)} {
		if got := put(strings.NewReader(wrong)); got != http.StatusBadRequest {
			t.Errorf("%.10q: status %d", wrong, got)
		}
	}
	if mode := src.Status().FastPath.Mode; mode != "" {
		t.Errorf("mode %q after what was refused", mode)
	}
	if err := client.SetFastPath(t.Context(), api.FastPathOff); err != nil || src.Status().FastPath.Mode != api.FastPathOff {
		t.Errorf("SetFastPath() = %v, mode %q", err, src.Status().FastPath.Mode)
	}
	if os.Geteuid() == 0 { // who is of the socket's group alone
		if err := os.Chmod(cfg.Socket, 0o666); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(cfg.Socket)
		for ; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "PUT", "-d", "on", "--unix-socket", cfg.Socket, "http://overlayd/v1/fast-path")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "403" || src.Status().FastPath.Mode != api.FastPathOff {
			t.Errorf("by another user: %v, %s", err, out)
		}
	}
	request, err := http.NewRequest(http.MethodPut, "http://"+s.Addr().String()+"/v1/fast-path", strings.NewReader("on"))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if response.Body.Close(); response.StatusCode != http.StatusNotFound || src.Status().FastPath.Mode != api.FastPathOff {
		t.Errorf("over TCP: status %d", response.StatusCode)
	}
}

// Another wireguard key is for root to have, by POST and by the socket; what the daemon refuses is said in its own line.
func TestRotateWireGuard(t *testing.T) {
	t.Parallel()
	cfg, src := config(t), &source{key: "abc="}
	s := serve(t, cfg, src)
	client := api.Dial(cfg.Socket)
	if key, err := client.RotateWireGuard(t.Context(), ""); key != "abc=" || err != nil {
		t.Errorf("RotateWireGuard() = %q, %v", key, err)
	}
	src.mu.Lock()
	src.rotate = errors.New("etcd is away: nothing was changed")
	src.mu.Unlock()
	if _, err := client.RotateWireGuard(t.Context(), ""); err == nil || err.Error() != "etcd is away: nothing was changed" {
		t.Errorf("RotateWireGuard() = %v, want the daemon's line", err)
	}
	response, err := http.Post("http://"+s.Addr().String()+"/v1/wireguard/rotate", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.Body.Close(); response.StatusCode != http.StatusNotFound {
		t.Errorf("over TCP: status %d", response.StatusCode)
	}
	if os.Geteuid() == 0 {
		if err := os.Chmod(cfg.Socket, 0o666); err != nil {
			t.Fatal(err)
		}
		for dir := filepath.Dir(cfg.Socket); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "--unix-socket", cfg.Socket, "http://overlayd/v1/wireguard/rotate")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "403" {
			t.Errorf("by another user: %v, %s", err, out)
		}
	}
}
