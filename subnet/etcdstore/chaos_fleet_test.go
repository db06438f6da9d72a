package etcdstore

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// chaosTTL is that of the leases: short enough to end behind a partition.
const chaosTTL = 3 * time.Second

// fleet is hosts on one etcd, and everything that can go wrong between them.
type fleet struct {
	t       testing.TB
	etcd    *server
	addr    string // of etcd, in every life
	network subnet.Network
	config  string
	other   string // that may take its place, with other families
	log     *counter
	history *history
	unwatch func()
	backup  backup
	members []*chaosHost
	clones  int
}

// backup is etcd's data as it was at a revision of a life.
type backup struct {
	dir      string
	life     int
	revision int64
}

// chaosHost is a host, dead or alive.
type chaosHost struct {
	*host // nil: dead
	proxy *proxy
	mode  mode // that the proxy has, unless etcd is being restarted
	store *Store
	cfg   JoinConfig // for the next start

	who  sync.Mutex
	id   string // its identity: a copy takes another, and keeps it
	addr int    // of the underlay, the last part of it
}

// self is what the host tells of itself.
func (f *fleet) self(h *chaosHost) subnet.Lease {
	h.who.Lock()
	defer h.who.Unlock()
	l := f.advert(h.addr)
	l.HostID = h.id
	return l
}

// renew gives the host another identity instead of one that is another's too.
func (h *chaosHost) renew(was string) {
	h.who.Lock()
	defer h.who.Unlock()
	if h.id == was {
		h.id = fmt.Sprintf("%s-%d", was, h.addr)
	}
}

func (h *chaosHost) identity() string {
	h.who.Lock()
	defer h.who.Unlock()
	return h.id
}

func newFleet(t *testing.T, configs [2]string) *fleet {
	n, err := subnet.ParseNetwork([]byte(configs[0]))
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, etcd: startEtcd(t, ""), network: n, config: configs[0], other: configs[1], log: new(counter), history: newHistory()}
	f.addr = f.etcd.addr()
	f.unwatch = f.history.follow(t, f.etcd.Endpoint())
	t.Cleanup(func() { f.unwatch() })
	f.etcd.put(t, prefix+"/config", f.config)
	for i := range chaosHosts {
		h := &chaosHost{id: fmt.Sprintf("chaos%d", i), addr: i + 1, proxy: startProxy(t, f.addr)}
		h.store = storeOf(t, Config{Endpoints: []string{h.proxy.endpoint()}}, f.log.logger().With("host", h.id))
		h.cfg = JoinConfig{HostID: h.id, Host: h.id, TTL: chaosTTL, Grace: 2 * time.Second}
		f.members = append(f.members, h)
	}
	return f
}

// advert is what a host with this address tells of itself.
func (f *fleet) advert(addr int) subnet.Lease {
	addrs := []string{netip.AddrFrom4([4]byte{198, 18, byte(addr >> 8), byte(addr)}).String()}
	if len(f.network.Pools) > 1 {
		addrs = append(addrs, fmt.Sprintf("2001:db8::%x", addr))
	}
	return advert(addrs...)
}

func (f *fleet) start(h *chaosHost) {
	m := newHost(f.t, h.store, h.cfg)
	m.tell = func(u Update) {
		f.history.believe(u.Own.HostID, u)
		if u.Own.State == Copied { // it takes an identity of its own
			h.renew(u.Own.HostID)
			time.AfterFunc(0, func() { m.Advertise(f.self(h)) })
		}
		if len(u.Own.Leaves) > 0 { // no container uses any subnet
			time.AfterFunc(100*time.Millisecond, m.vacate)
		}
	}
	h.host = m
	m.start()
	m.Advertise(f.self(h))
}

// clone starts a copy of a host's disk on another machine, which lives for a while.
func (f *fleet) clone(of *chaosHost, n uint64) {
	f.t.Helper()
	f.clones++
	id := of.identity()
	c := &chaosHost{id: id, addr: 1<<14 + f.clones, store: storeOf(f.t, Config{Endpoints: []string{"http://" + f.addr}}, f.log.logger().With("clone", id))}
	c.cfg = JoinConfig{HostID: id, Host: id, TTL: chaosTTL, Grace: 2 * time.Second}
	if of.host != nil {
		of.mu.Lock()
		own := of.last.Own.Record
		of.mu.Unlock()
		if len(own.Endpoints) > 0 {
			c.cfg.Previous, c.cfg.Last = own.Subnets(), leasecache.View{Last: &own, Own: &own}
		}
	}
	f.start(c)
	time.AfterFunc(time.Duration(n%4000)*time.Millisecond, c.stop)
}

// kill ends a host as SIGKILL does; what it had in its cache, it knows when it starts again.
func (f *fleet) kill(h *chaosHost) {
	m := h.host
	m.stop()
	h.host = nil
	m.mu.Lock()
	defer m.mu.Unlock()
	h.cfg.Previous, h.cfg.HostID = nil, h.identity()
	h.cfg.Last = leasecache.View{Config: m.last.Config, SameBoot: true}
	for _, r := range m.peers {
		h.cfg.Last.Peers = append(h.cfg.Last.Peers, &r)
	}
	own := m.last.Own
	if len(own.Record.Endpoints) > 0 {
		h.cfg.Previous = own.Record.Subnets()
	}
	if own.State == Held {
		h.cfg.Last.Own, h.cfg.Last.Last, h.cfg.Last.Expires = &own.Record, &own.Record, own.Expires
	}
}

// forget gives a dead host another past. As flannel's, its subnets need not share a slot.
func (f *fleet) forget(h *chaosHost, n uint64) {
	h.cfg.Last, h.cfg.Previous = leasecache.View{}, nil
	for i := range f.network.Pools {
		h.cfg.Previous = append(h.cfg.Previous, f.network.Slot(n >> (8 * i) % f.network.Slots())[i])
	}
}

func (f *fleet) set(h *chaosHost, m mode) {
	h.mode = m
	h.proxy.set(m)
}

// stopEtcd stops it when all that hosts heard of it is in the history.
func (f *fleet) stopEtcd() {
	f.t.Helper()
	for _, h := range f.members {
		h.proxy.set(refuse)
	}
	now, err := f.etcd.raw.Get(f.t.Context(), prefix)
	if err != nil {
		f.t.Fatal(err)
	}
	f.history.await(f.t, now.Header.Revision) // all keys of this etcd are in it
	f.unwatch()
	f.etcd.raw.Close()
	f.etcd.Close()
}

// startEtcdIn starts it with the data in dir.
func (f *fleet) startEtcdIn(dir string) {
	f.t.Helper()
	f.etcd = startEtcdIn(f.t, dir, f.addr)
	f.unwatch = f.history.follow(f.t, f.etcd.Endpoint())
	for _, h := range f.members {
		h.proxy.set(h.mode)
	}
}

func (f *fleet) restartEtcd() { f.stopEtcd(); f.startEtcdIn(f.etcd.dir) }

func (f *fleet) backUp() {
	f.stopEtcd()
	f.backup = backup{copyDir(f.t, f.etcd.dir), len(f.history.lives) - 1, f.history.seen()}
	f.startEtcdIn(f.etcd.dir)
}

func (f *fleet) restore() {
	if f.backup.dir == "" {
		return
	}
	f.stopEtcd()
	f.history.fork(f.backup.life, f.backup.revision)
	f.startEtcdIn(copyDir(f.t, f.backup.dir))
}

// unsettled says what is not as it should be when all is well; nil: everything is.
func (f *fleet) unsettled(s *Store) error {
	truth, err := s.Leases(f.t.Context())
	if err != nil {
		return err
	}
	for _, h := range f.members {
		if err := h.unsettled(truth.Records); err != nil {
			return fmt.Errorf("%s: %w", h.identity(), err)
		}
	}
	return nil
}

func (h *chaosHost) unsettled(truth []subnet.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	own := h.last.Own
	if own.State != Held || !h.last.Connected {
		return fmt.Errorf("%s of %s (%s), connected: %v", own.State, own.Record.Key(), own.Reason, h.last.Connected)
	}
	var mine []string
	peers := map[string]subnet.Record{}
	for _, r := range truth {
		switch {
		case r.HostID != h.identity():
			peers[r.Key()] = r
		case own.Record.Equal(r), r.LeaseID != 0: // otherwise it waits, reserved, for the next start
			mine = append(mine, r.Key())
		}
	}
	if !slices.Equal(mine, []string{own.Record.Key()}) {
		return fmt.Errorf("holds %s, etcd says %q", own.Record.Key(), mine)
	}
	if diff := cmp.Diff(peers, h.peers, cmp.Comparer(subnet.Record.Equal)); diff != "" {
		return fmt.Errorf("peers (-etcd +host)\n%s", diff)
	}
	return nil
}

// checker is a Store for looking at etcd, past all proxies.
func (f *fleet) checker() *Store {
	return storeOf(f.t, Config{Endpoints: []string{"http://" + f.addr}}, slog.New(slog.DiscardHandler))
}

// etcdCtx bounds what a fault does to etcd.
func (f *fleet) etcdCtx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(f.t.Context(), patience)
}
