package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
)

// fakeDocker lists containers, and tells of events.
type fakeDocker struct {
	mu         sync.Mutex
	containers []map[string]any
	changed    chan struct{}
	ended      chan struct{}
}

func (d *fakeDocker) container(id, ip string, labels map[string]string) map[string]any {
	return map[string]any{"Id": id, "Names": []string{"/name-" + id}, "Labels": labels, "NetworkSettings": map[string]any{
		"Networks": map[string]any{"overlay": map[string]any{"IPAddress": ip, "GlobalIPv6Address": ""}, "other": map[string]any{"IPAddress": "172.17.0.2"}},
	}}
}

func (d *fakeDocker) set(all ...map[string]any) {
	d.mu.Lock()
	d.containers = all
	d.mu.Unlock()
	select {
	case d.changed <- struct{}{}:
	default: // nobody listens: whoever comes will list
	}
}

func (d *fakeDocker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/containers/json":
		d.mu.Lock()
		defer d.mu.Unlock()
		_ = json.NewEncoder(w).Encode(d.containers)
	case "/events":
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		for {
			select {
			case <-d.changed:
				fmt.Fprintln(w, `{"Type":"container","Action":"start","Actor":{"ID":"x"}}`)
				w.(http.Flusher).Flush()
			case <-d.ended:
				return
			case <-r.Context().Done():
				return
			}
		}
	}
}

// serve serves until what it returns is called.
func (d *fakeDocker) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	d.changed, d.ended = make(chan struct{}, 1), make(chan struct{})
	s := &http.Server{Handler: d}
	go func() { _ = s.Serve(l) }()
	return func() { close(d.ended); s.Close() }
}

// TestDockerFollow has containers come and go, beside the follower's restarts and Docker's.
func TestDockerFollow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket, runDir := filepath.Join(dir, "docker.sock"), filepath.Join(dir, "run")
	if err := os.MkdirAll(identity.Dir(runDir), 0o755); err != nil {
		t.Fatal(err)
	}
	others := policy.Endpoint{IPs: []netip.Addr{netip.MustParseAddr("10.244.1.200")}, Identity: policy.Identity{Namespace: "default", Name: "others"}}
	for id, e := range map[string]policy.Endpoint{"theirs": others, "docker-stale": others} {
		if err := identity.WriteFile(identity.Dir(runDir), id, e); err != nil {
			t.Fatal(err)
		}
	}
	env := "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	if err := os.WriteFile(filepath.Join(runDir, "subnet.env"), []byte(env), 0o644); err != nil {
		t.Fatal(err)
	}
	start := func() (stop func()) {
		d, err := newDriver(config{dockerSocket: socket, runDir: runDir, stateDir: filepath.Join(dir, "state")}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		f := newFollower(d)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = f.run(ctx) }()
		return func() { cancel(); <-done }
	}
	has := func(want map[string]policy.Endpoint) {
		t.Helper()
		want = maps.Clone(want)
		want["theirs"] = others
		diff := ""
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			all, _, err := identity.ReadDir(identity.Dir(runDir))
			if err != nil {
				t.Fatal(err)
			}
			if diff = cmp.Diff(want, all, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff == "" {
				return
			}
		}
		t.Fatalf("the files (-want +got):\n%s", diff)
	}
	is := func(id, ip, namespace string, labels map[string]string, ports ...policy.NamedPort) policy.Endpoint {
		return policy.Endpoint{IPs: []netip.Addr{netip.MustParseAddr(ip)}, Identity: policy.Identity{Namespace: namespace, Name: "name-" + id, Labels: labels, Ports: ports}}
	}

	stop := start()
	has(map[string]policy.Endpoint{"docker-stale": others}) // Docker is away: its containers may run
	d := &fakeDocker{}
	web := d.container("a", "10.244.1.5", map[string]string{"app": "web", "not one": "x", identity.NamespaceKey: "dev", identity.PortsKey: "http:80/tcp"})
	isWeb := is("a", "10.244.1.5", "dev", map[string]string{"app": "web"}, policy.NamedPort{Name: "http", Port: 80, Protocol: policy.TCP})
	elsewhere := d.container("b", "10.245.0.2", nil)
	d.set(web, elsewhere)
	end := d.serve(t, socket)
	has(map[string]policy.Endpoint{"docker-a": isWeb})
	late := d.container("c", "10.244.1.6", map[string]string{"app": "c"})
	d.set(web, elsewhere, late)
	has(map[string]policy.Endpoint{"docker-a": isWeb, "docker-c": is("c", "10.244.1.6", "default", map[string]string{"app": "c"})})
	d.set(late)
	has(map[string]policy.Endpoint{"docker-c": is("c", "10.244.1.6", "default", map[string]string{"app": "c"})})

	end()
	stop()
	stop = start()
	defer func() { stop() }()
	d = &fakeDocker{containers: []map[string]any{web}}
	defer d.serve(t, socket)()
	has(map[string]policy.Endpoint{"docker-a": isWeb})
	names, err := filepath.Glob(filepath.Join(identity.Dir(runDir), ".*"))
	if err != nil || len(slices.DeleteFunc(names, func(n string) bool { return filepath.Base(n) == "." || filepath.Base(n) == ".." })) > 0 {
		t.Errorf("left over: %q, %v", names, err)
	}
}
