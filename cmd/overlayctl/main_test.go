package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet/etcdembed"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"overlayctl": main, "overlayd": check})
}

// check stands for overlayd, where overlayctl has it read a configuration.
func check() {
	declared := pflag.NewFlagSet("overlayd", pflag.ExitOnError)
	new(settings.Daemon).Register(declared)
	declared.Bool("check", false, "")
	_ = declared.Parse(os.Args[1:]) // it exits
	only := pflag.NewFlagSet("overlayd", pflag.ExitOnError)
	declared.VisitAll(func(f *pflag.Flag) {
		if f.Name != "check" {
			only.AddFlag(f)
		}
	})
	if _, err := settings.Load(only, "overlayd"); err != nil {
		fmt.Fprintln(os.Stderr, "overlayd:", err)
		os.Exit(1)
	}
}

// TestScripts runs the real overlayctl, in a process of its own, against a real etcd. Every script has a prefix in
// etcd and a run directory to itself.
func TestScripts(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "etcd.sock")
	etcd, err := etcdembed.Start(t.Context(), etcdembed.Config{
		Dir: t.TempDir(), Listen: "127.0.0.1:0", Socket: socket, Log: slog.New(slog.DiscardHandler), UnsafeNoFsync: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })

	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			config := filepath.Join(e.WorkDir, "overlayd.yaml")
			e.Setenv("OVERLAYD_CONFIG", config)
			e.Setenv("OVERLAYD_ETCD_ENDPOINTS", etcd.Endpoint())
			e.Setenv("OVERLAYD_ETCD_PREFIX", "/"+filepath.Base(e.WorkDir))
			e.Setenv("OVERLAYD_RUN_DIR", filepath.Join(e.WorkDir, "run"))
			e.Setenv("SOCKET", socket)
			e.Setenv("PREFIX", "/"+filepath.Base(e.WorkDir))
			if _, err := os.Stat(config); err == nil {
				return nil
			}
			return os.WriteFile(config, nil, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"await":   await,
			"daemon":  daemon,
			"etcdput": func(ts *testscript.TestScript, _ bool, args []string) { etcdPut(ts, client, args) },
			"etcddel": func(ts *testscript.TestScript, _ bool, args []string) { etcdDelete(ts, client, args) },
			"leases":  func(ts *testscript.TestScript, _ bool, args []string) { manyLeases(ts, client, args) },
		},
	})
}

// exits CODE COMMAND… runs a command that must exit with the code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit := new(exec.ExitError)
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// await FILE REGEXP waits until the file matches.
func await(ts *testscript.TestScript, _ bool, args []string) {
	re := regexp.MustCompile("(?m)" + args[1])
	var data []byte
	for range 500 {
		if data, _ = os.ReadFile(ts.MkAbs(args[0])); re.Match(data) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s never matched %s:\n%s", args[0], args[1], data)
}

// etcdput KEY VALUE [TTL] writes a key below the script's prefix, with a lease of TTL seconds if there is one.
func etcdPut(ts *testscript.TestScript, client *clientv3.Client, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var options []clientv3.OpOption
	if len(args) == 3 {
		ttl, err := strconv.ParseInt(args[2], 10, 64)
		ts.Check(err)
		granted, err := client.Grant(ctx, ttl)
		ts.Check(err)
		options = append(options, clientv3.WithLease(granted.ID))
	}
	_, err := client.Put(ctx, ts.Getenv("PREFIX")+"/"+args[0], args[1], options...)
	ts.Check(err)
}

// etcddel KEY deletes a key below the script's prefix.
func etcdDelete(ts *testscript.TestScript, client *clientv3.Client, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := client.Delete(ctx, ts.Getenv("PREFIX")+"/"+args[0])
	ts.Check(err)
}

// fixed is a Source that never changes by itself.
type fixed struct{ status *api.Status }

func (f fixed) Status() api.Status        { return *f.status }
func (f fixed) Ready() (bool, string)     { return f.status.Ready, f.status.Stage }
func (f fixed) Endpoints() []api.Endpoint { return nil }
func (f fixed) Denials() api.Denials      { return api.Denials{} }
func (f fixed) RotateWireGuard(context.Context, string) (string, error) {
	if f.status.WireGuard == nil {
		return "", errors.New("this host is in no network of wireguard: there is no key to change")
	}
	return "new=", nil
}
func (f fixed) SetFastPath(mode api.FastPathMode) { f.status.FastPath.Mode = mode }

// daemon FILE serves the status in FILE, as JSON, until the script ends. It started two hours ago.
func daemon(ts *testscript.TestScript, _ bool, args []string) {
	var status api.Status
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &status))
	status.Started = time.Now().Add(-2*time.Hour - time.Minute)
	if status.Lease.State == "held" {
		expires := time.Now().Add(90 * time.Minute)
		status.Lease.Expires = &expires
	}
	server, err := api.NewServer(api.ServerConfig{
		Socket:   settings.Socket(ts.Getenv("OVERLAYD_RUN_DIR")),
		Gatherer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx, fixed{&status}) }()
	ts.Defer(func() {
		cancel()
		ts.Check(<-done)
	})
}
