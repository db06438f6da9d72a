package enforcer

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/enforce"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// fakeTable takes everything in, and says what it was asked.
type fakeTable struct {
	changed chan struct{}
	denials chan enforce.Denial

	mu      sync.Mutex
	there   bool
	groups  map[compile.GroupID]map[compile.Match]bool
	sides   map[netip.Addr]compile.Sides
	pending []netip.Addr
	bridges map[string]bool
	routed  bool
	calls   []string // but Pending
	refuses error
	cut     func(enforce.Flow) bool
	unseen  bool // somebody was isolated while the bridge did not show its traffic
	fast    *fakeFast
	past    bool // somebody was isolated while it was fast
}

func (f *fakeTable) Run(ctx context.Context) error  { <-ctx.Done(); return nil }
func (f *fakeTable) Changed() <-chan struct{}       { return f.changed }
func (f *fakeTable) Denials() <-chan enforce.Denial { return f.denials }
func (f *fakeTable) called(format string, a ...any) {
	f.calls = append(f.calls, fmt.Sprintf(format, a...))
}
func (f *fakeTable) Pending(context.Context) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.pending), nil
}

func (f *fakeTable) Rebuild(_ context.Context, full compile.Change, _ enforce.Options) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("rebuild")
	if f.refuses != nil {
		return f.refuses
	}
	f.there, f.groups, f.sides = true, map[compile.GroupID]map[compile.Match]bool{}, map[netip.Addr]compile.Sides{}
	f.take(full)
	return nil
}

func (f *fakeTable) Apply(_ context.Context, c compile.Change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("apply")
	if f.refuses != nil {
		return f.refuses
	}
	f.take(c)
	return nil
}

func (f *fakeTable) take(c compile.Change) {
	for id, all := range c.Make {
		f.groups[id] = map[compile.Match]bool{}
		for _, m := range all {
			f.groups[id][m] = true
		}
	}
	for id, all := range c.Remove {
		for _, m := range all {
			delete(f.groups[id], m)
		}
	}
	for id, all := range c.Add {
		for _, m := range all {
			f.groups[id][m] = true
		}
	}
	maps.Copy(f.sides, c.Set)
	for _, a := range c.Gone {
		delete(f.sides, a)
	}
	for _, id := range c.Drop {
		delete(f.groups, id)
	}
	for addr, sides := range f.sides {
		f.past = f.past || sides != (compile.Sides{}) && !(f.fast.isSlow("default-web", addr.String()) && f.fast.isSlow("default-cli", addr.String()))
		f.unseen = f.unseen || sides != (compile.Sides{}) && !f.bridges["cni0"]
	}
}

func (f *fakeTable) Release(_ context.Context, addrs []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("release %v", addrs)
	f.pending = slices.DeleteFunc(f.pending, func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	return nil
}

func (f *fakeTable) Bridge(name string, on bool) (enforce.Shown, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	begun := on && !f.bridges[name]
	f.bridges[name] = on
	return enforce.Shown{Begun: begun, Routed: f.routed}, nil
}

func (f *fakeTable) Cut(_ context.Context, judge func(enforce.Flow) bool, only []netip.Addr) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("cut %v", only)
	f.cut = judge
	return 0, nil
}

func (f *fakeTable) Remove(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("remove")
	f.there, f.groups, f.sides, f.pending = false, nil, nil, nil
	return nil
}

// in is what a local address lets in, as text; "open" if it is not isolated.
func (f *fakeTable) in(ip string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.sides[netip.MustParseAddr(ip)]
	if !f.there || !ok || s.In == "" {
		return []string{"open"}
	}
	all := []string{}
	for m := range f.groups[s.In] {
		all = append(all, fmt.Sprintf("%v proto %d ports %d-%d", m.From, m.Proto, m.First, m.Last))
	}
	slices.Sort(all)
	return all
}

func (f *fakeTable) did() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// fakeStore tells what a test says, of keys below overlayd/.
type fakeStore struct {
	mu       sync.Mutex
	values   map[string]etcdstore.KeyValue
	revision int64
	away     bool
	tells    map[int]func(etcdstore.News)
	ranges   map[int][]string
	n        int
}

func (s *fakeStore) FollowKeys(ctx context.Context, tell func(etcdstore.News), ranges ...string) {
	s.mu.Lock()
	s.n++
	n := s.n
	s.tells[n], s.ranges[n] = tell, ranges
	news := s.list(ranges)
	s.mu.Unlock()
	tell(news)
	<-ctx.Done()
	s.mu.Lock()
	delete(s.tells, n)
	delete(s.ranges, n)
	s.mu.Unlock()
}

func (s *fakeStore) list(ranges []string) etcdstore.News {
	if s.away {
		return etcdstore.News{Err: fmt.Errorf("etcd is away")}
	}
	news := etcdstore.News{Listed: true}
	for _, r := range ranges {
		for _, key := range slices.Sorted(maps.Keys(s.values)) {
			if strings.HasPrefix(key, r) {
				news.Put = append(news.Put, s.values[key])
			}
		}
	}
	return news
}

// change puts values, and deletes those that are empty, in one transaction.
func (s *fakeStore) change(lease int64, values ...string) {
	s.mu.Lock()
	s.revision++
	news := map[int]etcdstore.News{}
	for i := 0; i < len(values); i += 2 {
		kv := etcdstore.KeyValue{Key: values[i], Value: []byte(values[i+1]), LeaseID: lease, ModRevision: s.revision}
		if values[i+1] == "" {
			delete(s.values, kv.Key)
		} else {
			s.values[kv.Key] = kv
		}
		for n, ranges := range s.ranges {
			if !slices.ContainsFunc(ranges, func(r string) bool { return strings.HasPrefix(kv.Key, r) }) {
				continue
			}
			one := news[n]
			if values[i+1] == "" {
				one.Deleted = append(one.Deleted, kv)
			} else {
				one.Put = append(one.Put, kv)
			}
			news[n] = one
		}
	}
	tells := maps.Clone(s.tells)
	s.mu.Unlock()
	for n, one := range news {
		tells[n](one)
	}
}

// relist has everybody hear all anew, after change.
func (s *fakeStore) relist(change func(values map[string]etcdstore.KeyValue)) {
	s.mu.Lock()
	change(s.values)
	tells, news := maps.Clone(s.tells), map[int]etcdstore.News{}
	for n, ranges := range s.ranges {
		news[n] = s.list(ranges)
	}
	s.mu.Unlock()
	for n, one := range news {
		tells[n](one)
	}
}

func (s *fakeStore) following() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.ranges {
		all = append(all, r...)
	}
	slices.Sort(all)
	return all
}

// fakeWriter has at once what it is told.
type fakeWriter struct {
	mu    sync.Mutex
	lease int64
	have  map[string]string
}

func (w *fakeWriter) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (w *fakeWriter) Changed() <-chan struct{}      { return nil }
func (w *fakeWriter) Set(lease int64, want map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lease, w.have = lease, want
}

func (w *fakeWriter) Status() (map[string]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.have, nil
}

// fakeFast takes in what it is told of addresses, as a fast path does that has the containers of the rig.
type fakeFast struct {
	mu    sync.Mutex
	judge func(netip.Addr, attachment.Key) bool
	slow  map[netip.Addr]bool // as last told, or judged
	calls int
}

func (f *fakeFast) SetSlow(judge func(netip.Addr, attachment.Key) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.judge, f.slow = judge, map[netip.Addr]bool{}
	f.calls++
}

func (f *fakeFast) Slow(addrs []netip.Addr, slow bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range addrs {
		f.slow[a] = slow
	}
	f.calls++
}

// isSlow says whether the container of this name and address is.
func (f *fakeFast) isSlow(name, ip string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	addr := netip.MustParseAddr(ip)
	slow, told := f.slow[addr]
	return f.judge(addr, attachment.Key{Network: "net", ContainerID: name, IfName: "eth0"}) || told && slow
}

// rig is an Enforcer between fakes.
type rig struct {
	*Enforcer
	t       *testing.T
	table   *fakeTable
	store   *fakeStore
	writer  *fakeWriter
	fast    *fakeFast
	changes chan struct{}
	dir     string
	found   bool // the kernel has something of an earlier run
	named   names

	mu     sync.Mutex
	locals []Local
	at     int64
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: t.TempDir(), store: &fakeStore{values: map[string]etcdstore.KeyValue{}, tells: map[int]func(etcdstore.News){}, ranges: map[int][]string{}}}
	r.renew()
	return r
}

// renew makes another Enforcer, in the same place.
func (r *rig) renew() {
	r.table = &fakeTable{changed: make(chan struct{}, 1), denials: make(chan enforce.Denial, 1), bridges: map[string]bool{}}
	r.writer, r.fast, r.changes = &fakeWriter{}, &fakeFast{}, make(chan struct{}, 1)
	r.table.fast = r.fast
	r.Enforcer = New(Config{
		Table: r.table, Store: r.store, Writer: r.writer, Fast: r.fast, Changes: r.changes, StateDir: r.dir, Network: "/net",
		Former:  func() (bool, error) { return r.found, nil },
		Dropped: func() (map[string]uint64, error) { return map[string]uint64{"denied-in": 3}, nil },
		Bridge:  func(netip.Addr) string { return "cni0" },
		Locals: func() ([]Local, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return slices.Clone(r.locals), nil
		},
		Options: enforce.Options{Unready: enforce.Closed}, Names: r.named,
		Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)),
	})
}

// start runs it until the test ends or stop is called, on a host with 10.5.72.0/24 that has two peers.
func (r *rig) start() (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			r.t.Error(err)
		}
	}()
	r.Own(lease("a", "10.5.72.0/24", 1))
	r.Peers(map[string]*subnet.Record{"b": lease("b", "10.5.73.0/24", 2), "c": lease("c", "10.5.74.0/24", 3)})
	task.Signal(r.changes)
	stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(stop)
	return stop
}

func lease(id, prefix string, etcd int64) *subnet.Record {
	return &subnet.Record{Lease: subnet.Lease{HostID: id, Host: id, Endpoints: []subnet.Endpoint{{Subnet: netip.MustParsePrefix(prefix)}}}, LeaseID: etcd}
}

// have says which containers the host has: "namespace/name ip label=value…".
func (r *rig) have(containers ...string) {
	var all []Local
	for i, text := range containers {
		words := strings.Fields(text)
		ns, name, _ := strings.Cut(words[0], "/")
		l := Local{Created: time.Unix(int64(i), 0), Endpoint: api.Endpoint{Network: "net", ContainerID: ns + "-" + name, IfName: "eth0"}}
		l.Identity = policy.Identity{Namespace: ns, Name: name, Labels: map[string]string{}}
		l.IPs = []netip.Addr{netip.MustParseAddr(words[1])}
		for _, w := range words[2:] {
			if key, value, ok := strings.Cut(w, "="); ok {
				l.Labels[key] = value
			} else if w == "untracked" {
				l.Untracked = true
			} else {
				l.LinkLocal = netip.MustParseAddr(w)
			}
		}
		all = append(all, l)
	}
	r.mu.Lock()
	r.locals = all
	r.mu.Unlock()
	task.Signal(r.changes)
}

// apply writes policies as overlayctl does, with an index; those without a spec are deleted.
func (r *rig) apply(policies ...policy.Policy) {
	var values []string
	n := 0
	r.store.mu.Lock()
	for key := range r.store.values {
		if strings.HasPrefix(key, etcdstore.PolicyDir) {
			n++
		}
	}
	for _, p := range policies {
		key := etcdstore.PolicyDir + p.Key()
		_, there := r.store.values[key]
		switch gone := p.Spec.PolicyTypes == nil; {
		case gone && there:
			n--
			values = append(values, key, "")
		case !gone:
			if !there {
				n++
			}
			values = append(values, key, text(r.t, p))
		}
	}
	r.store.mu.Unlock()
	r.store.change(0, append(values, etcdstore.PolicyIndexKey, r.index(n))...)
}

// index is the next one, with n policies, after what the store has.
func (r *rig) index(n int) string {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return text(r.t, r.next(r.store.values, n))
}

// confirmed is one by which an operator confirms n policies.
func (r *rig) confirmed(n int) string {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	i := r.next(r.store.values, n)
	i.Confirmed = i.At
	return text(r.t, i)
}

func (r *rig) next(values map[string]etcdstore.KeyValue, n int) policy.Index {
	r.at++ // the bubble's time may stand still
	return readIndex(values[etcdstore.PolicyIndexKey].Value).Next(time.Now().Add(time.Duration(r.at)), n)
}

func text(t *testing.T, v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// allow is a policy of namespace default that lets endpoints with app=from in to those with app=to; from "": nobody.
func allow(name, to, from string) policy.Policy {
	p := policy.Policy{Namespace: "default", Name: name}
	p.Spec.PodSelector.MatchLabels = map[string]string{"app": to}
	p.Spec.PolicyTypes = []policy.Type{policy.Ingress}
	if from != "" {
		p.Spec.Ingress = []policy.IngressRule{{From: []policy.Peer{{PodSelector: &policy.Selector{MatchLabels: map[string]string{"app": from}}}}}}
	}
	return p
}

// endpoint is the value of one of another host's.
func endpoint(name, ip string, labels map[string]string) string {
	e := policy.Endpoint{Identity: policy.Identity{Name: name, Labels: labels}, IPs: []netip.Addr{netip.MustParseAddr(ip)}}
	_, data, _ := e.Publish("")
	return string(data)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in twenty seconds: %s", what)
		}
	}
}

// lets waits until a local address lets in exactly what these texts begin with.
func (r *rig) lets(ip string, want ...string) {
	r.t.Helper()
	var got []string
	eventually(r.t, fmt.Sprintf("%s lets in %q", ip, want), func() bool {
		got = r.table.in(ip)
		return len(got) == len(want) && !slices.ContainsFunc(want, func(w string) bool {
			return !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, w) })
		})
	})
}
