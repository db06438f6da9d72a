package etcdstore

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdembed"
)

const (
	prefix  = "/coreos.com/network"
	subnets = prefix + "/subnets/"
	network = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// server is an etcd of the test's own.
type server struct {
	*etcdembed.Server
	dir string
	raw *clientv3.Client
}

// startEtcd starts an empty etcd; listen may be empty.
func startEtcd(t testing.TB, listen string) *server {
	t.Helper()
	return startEtcdIn(t, t.TempDir(), listen)
}

func startEtcdIn(t testing.TB, dir, listen string) *server {
	t.Helper()
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	s, err := etcdembed.Start(t.Context(), etcdembed.Config{Dir: dir, Listen: listen, UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close(); s.Close() })
	return &server{s, dir, raw}
}

func (s *server) addr() string { return strings.TrimPrefix(s.Endpoint(), "http://") }

// copyDir is a copy of the data of an etcd that does not run: a backup.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func (s *server) put(t testing.TB, key, value string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	r, err := s.raw.Put(t.Context(), key, value, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return r.Header.Revision
}

func (s *server) del(t testing.TB, key string, opts ...clientv3.OpOption) {
	t.Helper()
	if _, err := s.raw.Delete(t.Context(), key, opts...); err != nil {
		t.Fatal(err)
	}
}

// get returns a key's value and etcd lease; "" if there is none.
func (s *server) get(t testing.TB, key string) (value string, lease int64) {
	t.Helper()
	r, err := s.raw.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) == 0 {
		return "", 0
	}
	return string(r.Kvs[0].Value), r.Kvs[0].Lease
}

// keys lists what is below subnets/.
func (s *server) keys(t testing.TB) []string {
	t.Helper()
	r, err := s.raw.Get(t.Context(), subnets, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, kv := range r.Kvs {
		keys = append(keys, strings.TrimPrefix(string(kv.Key), subnets))
	}
	return keys
}

func openStore(t testing.TB, endpoints ...string) *Store {
	t.Helper()
	return storeOf(t, Config{Endpoints: endpoints}, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

// storeOf is the network of the tests at the etcd that cfg names.
func storeOf(t testing.TB, cfg Config, log *slog.Logger) *Store {
	t.Helper()
	c, err := NewClient(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := c.Store(prefix)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// host runs a Member and keeps what it says.
type host struct {
	*Member
	t    testing.TB
	stop func()
	tell func(Update) // hears of everything; may be nil

	mu    sync.Mutex
	last  Update
	peers map[string]subnet.Record
	gone  map[string]int // how often a peer was said to be gone
}

// Advertise sets what the host's lease is to say.
func (h *host) Advertise(l subnet.Lease) { h.Member.Advertise(Wish{Lease: l}) }

// vacate says that no container has an address of what the host may leave.
func (h *host) vacate() {
	h.mu.Lock()
	leaves := h.last.Own.Leaves
	h.mu.Unlock()
	h.Vacant(leaves)
}

// join runs a Member with the given underlay addresses until the test ends or stop is called.
func join(t testing.TB, s *Store, cfg JoinConfig, addrs ...string) *host {
	t.Helper()
	if cfg.Host == "" {
		cfg.Host = "name-of-" + cfg.HostID
	}
	h := newHost(t, s, cfg)
	h.start()
	if len(addrs) > 0 {
		h.Advertise(advert(addrs...))
	}
	return h
}

// newHost returns a host that does not run yet.
func newHost(t testing.TB, s *Store, cfg JoinConfig) *host {
	return &host{Member: s.Join(cfg), t: t, peers: map[string]subnet.Record{}, gone: map[string]int{}}
}

// start runs the Member and listens to it.
func (h *host) start() {
	t := h.t
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
		close(done)
	})
	wg.Go(func() {
		for {
			select {
			case <-h.Changed():
				h.absorb(h.Take())
			case <-done:
				return
			}
		}
	})
	h.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(h.stop)
}

func (h *host) absorb(u Update) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, r := range u.Peers {
		if r == nil {
			delete(h.peers, key)
			h.gone[key]++
		} else {
			h.peers[key] = *r
		}
	}
	h.last = u
	if h.tell != nil {
		h.tell(u)
	}
}

func (h *host) goneCount(key string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gone[key]
}

// await waits until the host says what is wanted, and returns it.
func (h *host) await(what string, ok func(Update) bool) Update {
	h.t.Helper()
	var u Update
	eventually(h.t, h.cfg.HostID+": "+what, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		u = h.last
		return ok(u)
	})
	return u
}

// awaitHeld waits for the lease of a key; empty: of any.
func (h *host) awaitHeld(key string) Update {
	h.t.Helper()
	return h.await("holds "+key, func(u Update) bool {
		return u.Own.State == Held && (key == "" || u.Own.Record.Key() == key)
	})
}

// awaitPeers waits until the host knows exactly these peers.
func (h *host) awaitPeers(keys ...string) {
	h.t.Helper()
	slices.Sort(keys)
	eventually(h.t, fmt.Sprintf("%s: has peers %v", h.cfg.HostID, keys), func() bool {
		return slices.Equal(h.peerKeys(), keys)
	})
}

func (h *host) peerKeys() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.peers))
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// advert is what a vxlan host with these addresses advertises.
func advert(addrs ...string) subnet.Lease {
	l := subnet.Lease{Backend: "vxlan"}
	for _, a := range addrs {
		l.Endpoints = append(l.Endpoints, subnet.Endpoint{
			PublicIP: netip.MustParseAddr(a), Data: json.RawMessage(`{"VNI":1,"VtepMAC":"5e:96:93:0f:50:82"}`),
		})
	}
	return l
}

// flannelValue is the value of a flannel host's lease.
func flannelValue(addr string) string {
	return `{"PublicIP":"` + addr + `","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:96:93:0f:50:83"}}`
}

// hostValue is the value of an overlayd host's lease.
func hostValue(hostID, addr string) string {
	return strings.TrimSuffix(flannelValue(addr), "}") + `,"HostID":"` + hostID + `"}`
}

// hangOn has the first call of a method wait until the channel, which first says that it waits, is closed.
func hangOn(t testing.TB, s *Store, method string) chan struct{} {
	t.Helper()
	hang := make(chan struct{})
	var once sync.Once
	s.client.dialOptions = append(s.client.dialOptions, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, name string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if strings.HasSuffix(name, method) {
				once.Do(func() { hang <- struct{}{}; <-hang })
			}
			return invoke(ctx, name, req, reply, cc, opts...)
		}))
	return hang
}
