package networks

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/cmd/internal/agent"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// rig is a Host whose agents cannot be made.
type rig struct {
	*Host
	tell chan etcdstore.News

	mu   sync.Mutex
	made []string
	said []string
}

func start(t *testing.T, names []string, all bool) *rig {
	t.Helper()
	r := &rig{tell: make(chan etcdstore.News)}
	r.Host = New(Config{
		Names: names, All: all, Shared: agent.NewShared(append([]string{""}, names...)...), Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.DiscardHandler),
		Follow: func(ctx context.Context, tell func(etcdstore.News), _ ...string) {
			for {
				select {
				case <-ctx.Done():
					return
				case n := <-r.tell:
					tell(n)
				}
			}
		},
		Make: func(name string, _ *agent.Share, _ func(string)) (Network, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.made = append(r.made, name)
			return Network{}, errors.New("no agents here")
		},
		Notify: func(s string) { r.mu.Lock(); defer r.mu.Unlock(); r.said = append(r.said, s) },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// wantIn waits until the host is, or tries to be, in these networks besides the unnamed one.
func (r *rig) wantIn(t *testing.T, names ...string) {
	t.Helper()
	var have []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		have = nil
		for _, n := range r.Status().Networks {
			have = append(have, n.Name)
		}
		if slices.Equal(have, names) {
			return
		}
	}
	t.Fatalf("in %q, want %q", have, names)
}

func put(keys ...string) (all []etcdstore.KeyValue) {
	for _, key := range keys {
		all = append(all, etcdstore.KeyValue{Key: key, Value: []byte("{}")})
	}
	return all
}

// A host that is to be in all networks joins what is made, and leaves what is deleted, also while etcd was away; until it hears from
// etcd it is in those that it was in.
func TestAllNetworks(t *testing.T) {
	t.Parallel()
	r := start(t, []string{"was"}, true)
	r.wantIn(t, "was")
	r.tell <- etcdstore.News{Listed: true, Put: put("networks/blue", "networks/Not a name", "peered/blue,default", "peered/nonsense")}
	r.wantIn(t, "blue")
	r.tell <- etcdstore.News{Put: put("networks/red")}
	r.wantIn(t, "blue", "red")
	r.tell <- etcdstore.News{Err: errors.New("away")}
	r.tell <- etcdstore.News{Deleted: put("networks/blue")}
	r.wantIn(t, "red")
	r.tell <- etcdstore.News{Listed: true, Put: put("networks/green")}
	r.wantIn(t, "green")
}

// One that is told names stays in those, whichever there are, and in others when it is told others.
func TestNamedNetworks(t *testing.T) {
	t.Parallel()
	r := start(t, []string{"blue"}, false)
	r.tell <- etcdstore.News{Listed: true, Put: put("networks/blue", "networks/red")}
	r.wantIn(t, "blue")
	r.tell <- etcdstore.News{Deleted: put("networks/blue")}
	r.wantIn(t, "blue") // it waits for another of the name
	r.SetNames([]string{"red", "yellow"})
	r.wantIn(t, "red", "yellow")
	s := r.Status()
	if !s.Degraded || !slices.Contains(s.Problems, "network red: no agents here") {
		t.Errorf("degraded %t, problems %q", s.Degraded, s.Problems)
	}
}
