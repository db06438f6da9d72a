package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

type fakeFast api.FastPathMode

func (f *fakeFast) SetMode(mode api.FastPathMode) { *f = fakeFast(mode) }

type fakeHost []string

func (h *fakeHost) SetNames(names []string) { *h = names }

func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "overlayd.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log-level: info\nip-masq: false\n")
	declared := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	new(settings.Daemon).Register(declared)
	if err := declared.Parse([]string{"--config", file, "--iface", "eth0,eth1", "--lease-ttl", "1h"}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	c, err := source{declared, &log}.config()
	if err != nil {
		t.Fatal(err)
	}
	client, err := etcdstore.NewClient(c.etcd, c.log)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var fast fakeFast

	for _, wrong := range []string{"log-level: loud", "etcd-endpoint: x", "fast-path: sometimes", "log-level: debug\netcd-endpoints: [ftp://x]"} {
		write(wrong)
		if err := c.reload(reloaded{client, &fast, nil}); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("reload of %q = %v, want one line", wrong, err)
		}
		if c.level.Level() != slog.LevelInfo {
			t.Errorf("half of %q was taken over", wrong)
		}
	}

	write("log-level: debug\nip-masq: true\nlease-ttl: 2h\nfast-path: off\n")
	if err := c.reload(reloaded{client, &fast, nil}); err != nil {
		t.Fatal(err)
	}
	if c.level.Level() != slog.LevelDebug {
		t.Errorf("level %s, want debug", c.level.Level())
	}
	if fast != "off" {
		t.Errorf("fast path %q, want off", fast)
	}
	// The command line still wins over the file: lease-ttl has not changed.
	if want := `settings=[ip-masq]`; !strings.Contains(log.String(), want) {
		t.Errorf("log %q, want %s", log.String(), want)
	}
	write("etcd-endpoints: [http://192.0.2.7:2379]\n")
	if err := c.reload(reloaded{client, &fast, nil}); err != nil {
		t.Fatal(err)
	}
	if c.level.Level() != slog.LevelInfo {
		t.Errorf("level %s after its line was removed, want the default", c.level.Level())
	}
	// Of several networks those count that are named now, unless all are joined; one that is alone stays so.
	host := fakeHost{"blue"}
	for text, want := range map[string][]string{"networks: [red, blue]\n": {"red", "blue"}, "networks: all\n": {"red", "blue"}, "networks: [red, -x]\n": {"red", "blue"}} {
		write("networks: [red, blue]\n")
		if err := c.reload(reloaded{client, &fast, &host}); err != nil {
			t.Fatal(err)
		}
		write(text)
		if _ = c.reload(reloaded{client, &fast, &host}); !slices.Equal(host, want) {
			t.Errorf("%q: the host is in %q, want %q", text, host, want)
		}
	}
	write("etcd-endpoints: [http://192.0.2.7:2379]\n")
	if err := c.reload(reloaded{client, &fast, nil}); err != nil {
		t.Fatal(err)
	}
	if got := client.Endpoints(); !slices.Equal(got, []string{"http://192.0.2.7:2379"}) {
		t.Errorf("endpoints %s are in force", got)
	}
}
