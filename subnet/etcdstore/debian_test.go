package etcdstore

import (
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// startDebianEtcd starts the etcd that Debian ships, which is older than the embedded one, at ports that nobody has.
func startDebianEtcd(t testing.TB, args ...string) *process {
	t.Helper()
	at := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return "http://" + l.Addr().String()
	}
	p := &process{endpoint: at()}
	dir := filepath.Join(t.TempDir(), "etcd") // etcd makes it, as it likes it
	cmd := exec.Command("etcd", append([]string{"--data-dir", dir, "--logger", "zap", "--log-level", "error",
		"--listen-client-urls", p.endpoint, "--advertise-client-urls", p.endpoint, "--listen-peer-urls", at()}, args...)...)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{p.endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	p.server, p.pid = &server{raw: raw}, cmd.Process.Pid
	eventually(t, "etcd serves", func() bool {
		_, err := raw.Get(t.Context(), "x")
		time.Sleep(10 * time.Millisecond)
		return err == nil
	})
	return p
}
