package etcdstore

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

const (
	// rememberAfter is how long etcd may keep silent at start before the host comes up as it was.
	rememberAfter = 2 * time.Second
	// spread is how much later, for each host, some host may say what nobody waits for, such as another VNI: etcd tells
	// all of each change, and all of them change at once. So it tells about 70 changes a second.
	spread = 15 * time.Millisecond
)

// JoinConfig says who joins the network.
type JoinConfig struct {
	HostID   string                // random, remembered by the host; required
	Host     string                // the host's name, for people
	TTL      time.Duration         // of the lease, from its last renewal on; 0: 24 h
	Grace    time.Duration         // how long peers that vanish together are kept; 0: 2 min
	Last     leasecache.View       // what the host remembers; the zero View: nothing
	Previous []netip.Prefix        // subnets that the host had before, asked for again
	Cache    *leasecache.Cache     // takes what is to be remembered; nil: nothing
	Metrics  prometheus.Registerer // nil: none
}

// Own is the host's own lease.
type Own struct {
	HostID  string // whose lease it is
	State   State
	Record  subnet.Record  // as last held; without endpoints before that
	Reason  string         // what needs attention, or is waited for; empty if all is well
	Expires time.Time      // when the lease ends if it cannot be renewed; zero: unknown, or it does not expire
	Leaves  []netip.Prefix // subnets that the host gives back when told that they are Vacant; sorted
}

// Update is what a Member knows, and what changed since it was last asked.
type Update struct {
	Network   *subnet.Network // the configuration in force; nil until known
	Config    []byte          // Network as it stands in etcd
	Created   int64           // etcd's revision when the network was made; 0: not known
	Own       Own
	Connected bool  // etcd answers
	Err       error // why it does not, or what is wrong with the network config; nil if all is well
	// Peers are the leases of other hosts that changed, by key; nil: the peer is gone. They never overlap each other
	// or the own lease, but for peers that are kept although they vanished.
	Peers map[string]*subnet.Record
	// Complete says that the Peers of all Updates until now are all there are, and stays true: etcd was listed, or it
	// keeps silent and this is what the host remembers.
	Complete   bool
	Remembered bool  // it is what the host remembers
	Revision   int64 // of etcd, up to which the leases are known
}

// Member is one host's membership of the network: it holds the host's lease and follows the leases of its peers. The
// mirror tells it what etcd holds, the claimer decides from that what to do, and what is done is seen through the mirror.
// The session keeps etcd's lease beside that.
type Member struct {
	cfg     JoinConfig
	log     *slog.Logger
	metrics *metrics
	mirror  *mirror
	session *session
	wake    chan struct{} // capacity 1: the host has a new wish
	changed chan struct{} // capacity 1: there is something to Take

	mu     sync.Mutex // guards what the host and Run share
	wishes wishes
	other  error // endpoints that are of another cluster; nil: none
	out    Update

	// The rest belongs to Run.
	view    *view
	claimer claimer
	state   State
	reason  string
	leaves  []netip.Prefix
	follows []byte // network config that the host follows
	conn    *conn  // nil: etcd is away
	failure error  // why
	away    bool   // the host was told
	memory  bool   // etcd has kept silent for long: the host goes by what it remembers
	writer  writer
	due     schedule
}

// Wish is what the host's lease is to say: Backend and, for each family, PublicIP and Data; an endpoint's family is that of
// its PublicIP, or of its Subnet, which otherwise does not matter. HostID and Host are those of JoinConfig unless they
// are given: a host that is Copied gives new ones.
type Wish struct {
	subnet.Lease
	NIC    string // MAC of the underlay's link, by which the host knows itself again
	Config []byte // the network config that the host follows, to be remembered
}

// wishes is what the host wants of its membership.
type wishes struct {
	wish   *Wish // nil: nothing yet
	vacant []netip.Prefix
}

// Join makes the host a member. Nothing happens before Run.
func (s *Store) Join(cfg JoinConfig) *Member {
	cfg.TTL = cmp.Or(cfg.TTL, 24*time.Hour)
	cfg.Grace = cmp.Or(cfg.Grace, 2*time.Minute)
	m := &Member{
		cfg:     cfg,
		log:     s.log,
		mirror:  s.mirror(),
		session: newSession(cfg.TTL),
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}, 1),
		claimer: claimer{wish: subnet.Lease{HostID: cfg.HostID}, past: cfg.past()},
		state:   Waiting, reason: "waiting for etcd",
		writer: writer{store: s, done: make(chan result, 1), limit: rate.NewLimiter(1, 5)},
		due:    schedule{},
	}
	m.metrics = newMetrics(cfg.Metrics, m)
	m.view = s.view(cfg, m.metrics)
	s.client.know(cfg.Last.Cluster)
	s.client.remember(cfg.Last.Seeds, cfg.Last.Members)
	m.cfg.Last.Peers = nil // many, soon out of date
	m.publish()
	return m
}

// Advertise sets what the host's lease is to say. The claim waits for the first call, later ones change the lease.
func (m *Member) Advertise(w Wish) {
	w.HostID, w.Host = cmp.Or(w.HostID, m.cfg.HostID), cmp.Or(w.Host, m.cfg.Host)
	w.Endpoints = slices.Clone(w.Endpoints)
	m.wish(func(all *wishes) { all.wish = &w })
}

// Vacant says that no container has an address of these subnets now. Those that the host need not have it gives back: the
// one that is Taken, or that the network does not lease any more, for which it claims another, and leases beside its own.
func (m *Member) Vacant(subnets []netip.Prefix) {
	m.wish(func(w *wishes) { w.vacant = append(w.vacant, subnets...) })
}

func (m *Member) wish(set func(*wishes)) {
	m.mu.Lock()
	set(&m.wishes)
	m.mu.Unlock()
	signal(m.wake)
}

// Changed receives a value when there is something new to Take.
func (m *Member) Changed() <-chan struct{} { return m.changed }

// Take returns what is known now, with the Peers that changed since the last Take. It never blocks.
func (m *Member) Take() Update {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.out
	m.out.Peers = nil
	return u
}

// Run claims and keeps the lease and follows the peers until ctx ends; then it returns nil. What fails it tries again.
// It leaves the lease in etcd. It must be called once.
func (m *Member) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.mirror.Run(ctx) })
	g.Go(func() error { return m.session.Run(ctx) })
	g.Go(func() error { m.mirror.client.compare(ctx, m.compared); return nil })
	if m.cfg.Cache != nil {
		g.Go(func() error { return m.cfg.Cache.Run(ctx) })
	}
	g.Go(func() error { return m.loop(ctx) })
	return g.Wait()
}

// compared takes in which endpoints are of another cluster.
func (m *Member) compared(err error) {
	if err != nil {
		m.log.Error("an endpoint of etcd is not used", "err", err)
	}
	m.mu.Lock()
	m.other = err
	m.mu.Unlock()
	signal(m.wake)
}
