package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/extension"
	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/sysctl"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// fakeMember is a membership whose news the test makes up.
type fakeMember struct {
	mu         sync.Mutex
	update     etcdstore.Update
	advertised []subnet.Lease
	vacant     []netip.Prefix
	changed    chan struct{}
}

func (m *fakeMember) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (m *fakeMember) Changed() <-chan struct{}      { return m.changed }

func (m *fakeMember) Vacant(subnets []netip.Prefix) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range subnets {
		if !slices.Contains(m.vacant, p) {
			m.vacant = append(m.vacant, p)
		}
	}
}

// vacated are the subnets that the host was said to have no container in.
func (m *fakeMember) vacated() []netip.Prefix {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.vacant)
}

func (m *fakeMember) Advertise(w etcdstore.Wish) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.advertised = append(m.advertised, w.Lease)
}

func (m *fakeMember) Take() etcdstore.Update {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.update
	m.update.Peers = nil
	return u
}

// tell makes news.
func (m *fakeMember) tell(u etcdstore.Update) {
	m.mu.Lock()
	m.update = u
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// fakeKernel takes everything in and does it at once, except what refuse says.
type fakeKernel struct {
	mu       sync.Mutex
	owners   map[string][]kernel.Object
	replaced int
	asked    []netip.Addr
	status   kernel.Status
	far      map[netip.Addr]bool
	before   func() // Update does anything; nil: nothing
	changed  chan struct{}
	underlay chan struct{}
	sessions map[kernel.WGPeerID]kernel.Session
	came     chan struct{} // sessions changed
	greeted  []kernel.WGPeerID
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{changed: make(chan struct{}, 1), underlay: make(chan struct{}, 1), came: make(chan struct{}, 1), status: kernel.Status{InStep: true}}
}

func (k *fakeKernel) Changed() <-chan struct{}         { return k.changed }
func (k *fakeKernel) UnderlayChanged() <-chan struct{} { return k.underlay }
func (k *fakeKernel) SessionsChanged() <-chan struct{} { return k.came }
func (k *fakeKernel) Sessions() map[kernel.WGPeerID]kernel.Session {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sessions
}
func (k *fakeKernel) Greet(peers ...kernel.WGPeerID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.greeted = append(k.greeted, peers...)
}
func (k *fakeKernel) Replace(all []kernel.Claim) {
	k.take(map[string][]kernel.Object{}, all)
	k.replaced++
}
func (k *fakeKernel) Update(some []kernel.Claim) {
	k.mu.Lock()
	before := k.before
	k.mu.Unlock()
	if before != nil {
		before()
	}
	k.take(k.owners, some)
}

func (k *fakeKernel) take(have map[string][]kernel.Object, news []kernel.Claim) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range news {
		if have[c.Owner] = c.Objects; len(c.Objects) == 0 {
			delete(have, c.Owner)
		}
	}
	k.owners = have
}

func (k *fakeKernel) Status() kernel.Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.status
}

func (k *fakeKernel) OnLink(ask []netip.Addr) ([]int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = append(k.asked, ask...)
	links := make([]int, len(ask))
	for i, ip := range ask {
		if links[i] = testIndex; k.far[ip] {
			links[i]++ // on link, but over another NIC
		}
	}
	return links, nil
}

// routes are the routes that the kernel was given, as an operator reads them.
func (k *fakeKernel) routes() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	routes := []string{}
	for _, objs := range k.owners {
		for _, o := range objs {
			if r, ok := o.(kernel.Route); ok {
				routes = append(routes, fmt.Sprintf("%s via %s dev %s", r.Dst, r.Via, r.Link))
			}
		}
	}
	slices.Sort(routes)
	return routes
}

// noCommands are those of a network that has none.
type noCommands struct{}

func (noCommands) Run(ctx context.Context) error                    { <-ctx.Done(); return nil }
func (noCommands) Told(extension.Commands) (json.RawMessage, error) { return nil, nil }
func (noCommands) Serve(extension.Site)                             {}
func (noCommands) Peers(map[string]*subnet.Record)                  {}
func (noCommands) PeerErr(string) error                             { return nil }
func (noCommands) Problem() error                                   { return nil }
func (noCommands) Changed() <-chan struct{}                         { return nil }
func (noCommands) Applied() <-chan struct{}                         { return closed }

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// fakeWhole takes in what is wanted, and has it when the test says so.
type fakeWhole[T any] struct {
	mu      sync.Mutex
	want    []T
	status  task.Status
	changed chan struct{}
	applied chan struct{}
}

func newFakeWhole[T any]() *fakeWhole[T] {
	w := &fakeWhole[T]{changed: make(chan struct{}, 1), applied: make(chan struct{})}
	close(w.applied)
	return w
}

func (w *fakeWhole[T]) Changed() <-chan struct{} { return w.changed }
func (w *fakeWhole[T]) Applied() <-chan struct{} { return w.applied }

func (w *fakeWhole[T]) Set(want []T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.want = want
}

func (w *fakeWhole[T]) Status() task.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Objects = len(w.want)
	return s
}

func (w *fakeWhole[T]) wanted() []T {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.want)
}

// becomes makes a status.
func (w *fakeWhole[T]) becomes(s task.Status) {
	w.mu.Lock()
	w.status = s
	w.mu.Unlock()
	w.changed <- struct{}{}
}

// fakeElements takes in what is wanted, and has it at once.
type fakeElements struct {
	mu      sync.Mutex
	claims  map[string][]firewall.Element
	status  task.Status
	changed chan struct{}
}

func (e *fakeElements) Changed() <-chan struct{} { return e.changed }

func (e *fakeElements) Replace(all []firewall.Claim) {
	e.mu.Lock()
	e.claims = map[string][]firewall.Element{}
	e.mu.Unlock()
	e.Update(all)
}

func (e *fakeElements) Update(changed []firewall.Claim) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range changed {
		if e.claims[c.Owner] = c.Elements; c.Elements == nil {
			delete(e.claims, c.Owner)
		}
	}
	done := make(chan struct{})
	close(done)
	return done
}

func (e *fakeElements) Status() task.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status
}

// let are the elements as commands, each once.
func (e *fakeElements) let() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	let := []string{}
	for _, elements := range e.claims {
		for _, el := range elements {
			let = append(let, strings.TrimPrefix(el.String(), "nft 'add element inet overlayd "))
		}
	}
	slices.Sort(let)
	return slices.Compact(let)
}

// noPolicy has none in force.
type noPolicy struct{}

func (noPolicy) Run(ctx context.Context) error   { <-ctx.Done(); return nil }
func (noPolicy) Own(*subnet.Record)              {}
func (noPolicy) Peers(map[string]*subnet.Record) {}
func (noPolicy) Status() api.Policy              { return api.Policy{} }
func (noPolicy) Problem() error                  { return nil }
func (noPolicy) Endpoints() []api.Endpoint       { return nil }
func (noPolicy) Denials() api.Denials            { return api.Denials{} }
func (noPolicy) Changed() <-chan struct{}        { return nil }
func (noPolicy) Applied() <-chan struct{}        { return newFakeWhole[int]().applied }

// fakeFast takes in what it is told.
type fakeFast struct {
	mu     sync.Mutex
	end    FastEnd
	claims map[string][]fastpath.Peer
	empty  bool
	mode   api.FastPathMode
	loaded chan struct{}
}

func (f *fakeFast) Active() bool               { return true }
func (f *fakeFast) Loaded() <-chan struct{}    { return f.loaded }
func (f *fakeFast) SetMode(m api.FastPathMode) { f.mu.Lock(); defer f.mu.Unlock(); f.mode = m }
func (f *fakeFast) SetOwn(e FastEnd)           { f.mu.Lock(); defer f.mu.Unlock(); f.end = e }
func (f *fakeFast) Empty() bool                { f.mu.Lock(); defer f.mu.Unlock(); return f.empty }
func (f *fakeFast) Status() (api.FastPath, map[netip.Prefix]fastpath.PeerPackets) {
	return api.FastPath{}, nil
}

func (f *fakeFast) Replace(all []fastpath.Claim) {
	f.mu.Lock()
	f.claims, f.empty = map[string][]fastpath.Peer{}, false
	f.mu.Unlock()
	f.Update(all)
}

func (f *fakeFast) Update(changed []fastpath.Claim) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range changed {
		if f.claims[c.Owner] = c.Peers; len(c.Peers) == 0 {
			delete(f.claims, c.Owner)
		}
	}
}

// rig is an agent between fakes.
type rig struct {
	*Agent
	member   *fakeMember
	kernel   *fakeKernel
	firewall *fakeWhole[firewall.Rule]
	elements *fakeElements
	sysctls  *fakeWhole[sysctl.Param]
	fast     *fakeFast
	host     func() (Host, error)
	inUse    []netip.Addr // as the host was last looked for
	vacant   func([]netip.Prefix) (bool, error)
	dir      string

	mu       sync.Mutex
	notified []string
}

func newRig(t *testing.T, dir string) *rig {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	state, err := OpenState(filepath.Join(dir, "state"), "machine", log)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{member: &fakeMember{changed: make(chan struct{}, 1)}, kernel: newFakeKernel(), dir: dir}
	r.firewall, r.sysctls = newFakeWhole[firewall.Rule](), newFakeWhole[sysctl.Param]()
	r.elements = &fakeElements{claims: map[string][]firewall.Element{}, changed: make(chan struct{}, 1)}
	r.fast = &fakeFast{claims: map[string][]fastpath.Peer{}, loaded: make(chan struct{}, 1)}
	r.host = func() (Host, error) { return testHost("172.30.0.11"), nil }
	r.vacant = func([]netip.Prefix) (bool, error) { return true, nil }
	r.Agent = New(Config{
		Member: r.member, Kernel: r.kernel, Firewall: r.firewall, Elements: r.elements, Sysctls: r.sysctls, Policy: noPolicy{}, Fast: r.fast, OnLink: r.kernel.OnLink, State: state, HostName: "a", Version: "v0", Log: log,
		FindHost:   func(_ subnet.Network, inUse []netip.Addr) (Host, error) { r.inUse = inUse; return r.host() },
		Vacate:     func(p []netip.Prefix) (bool, error) { return r.vacant(p) },
		Endpoints:  func() []string { return []string{"http://192.0.2.1:2379"} },
		Commands:   noCommands{},
		Unguarded:  func() error { return nil },
		Dropped:    func() (map[string]uint64, error) { return nil, nil },
		EtcdAddrs:  func() []netip.Addr { return nil },
		CacheErr:   func() error { return nil },
		CertErr:    func() error { return nil },
		Settled:    func() {},
		SubnetFile: filepath.Join(dir, "run", "subnet.env"),
		Notify: func(s string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.notified = append(r.notified, s)
		},
	})
	return r
}

// start runs the agent until the test ends, or until stop is called, which returns what Run did.
func (r *rig) start(t *testing.T) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		err := <-done
		r.cfg.State.Close()
		return err
	})
	t.Cleanup(func() { stop() })
	return stop
}

func (r *rig) sent() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.notified)
}

// testIndex is that of the test hosts' underlay.
const testIndex = 2

func testHost(ip string) Host {
	addrs := map[subnet.Family]netip.Addr{subnet.IPv4: netip.MustParseAddr(ip)}
	return Host{Index: testIndex, Uplinks: []string{"eth0"}, Host: backend.Host{Link: "eth0", MTU: 1500, Addrs: addrs, PublicIPs: addrs, VTEP: kernel.MAC{2, 1}}}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in ten seconds: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// news is an update of a network whose host holds 10.5.72.0/24 and has these peers.
func news(t *testing.T, config string, peers map[string]*subnet.Record) etcdstore.Update {
	t.Helper()
	n, err := subnet.ParseNetwork([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	own := record("10.5.72.0/24", "172.30.0.11", n.Backend.Type, 0x11)
	return etcdstore.Update{
		Network: &n, Config: []byte(config), Own: etcdstore.Own{State: etcdstore.Held, Record: *own},
		Connected: true, Peers: peers, Complete: true, Revision: 7,
	}
}

func record(subnetText, ip, kind string, mac byte) *subnet.Record {
	e := subnet.Endpoint{Subnet: netip.MustParsePrefix(subnetText), PublicIP: netip.MustParseAddr(ip)}
	if kind == "vxlan" {
		e.Data = json.RawMessage(fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x","Port":8472}`, mac))
	}
	return &subnet.Record{Lease: subnet.Lease{Host: ip, HostID: ip, Backend: kind, Endpoints: []subnet.Endpoint{e}}, LeaseID: 1}
}

const (
	vxlanConfig  = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`
	directConfig = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`
	hostGWConfig = `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`
)
