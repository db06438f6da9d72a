package etcdstore

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
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
	// all of each change, and all of them change at once. So it tells about 100 changes a second.
	spread = 10 * time.Millisecond
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
		mirror:  newMirror(s.client, s.log, keyRange{key: s.configKey()}, keyRange{s.leasePrefix(), true}),
		session: newSession(cfg.TTL),
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}, 1),
		claimer: claimer{wish: subnet.Lease{HostID: cfg.HostID}, past: past{cfg.Previous, cfg.Last.Last, cfg.Last.SameBoot, cfg.Last.NIC}},
		state:   Waiting, reason: "waiting for etcd",
		writer: writer{store: s, done: make(chan result, 1), limit: rate.NewLimiter(1, 5)},
		due:    schedule{},
	}
	m.metrics = newMetrics(cfg.Metrics, m)
	m.view = &view{
		store: s, log: s.log, metrics: m.metrics, grace: cfg.Grace, wish: m.claimer.wish,
		peers: newPeers(cfg.Grace), skips: newSkips(s.log, m.metrics),
	}
	m.view.remember(cfg.Last)
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
	if m.cfg.Cache != nil {
		g.Go(func() error { return m.cfg.Cache.Run(ctx) })
	}
	g.Go(func() error { return m.loop(ctx) })
	return g.Wait()
}

func (m *Member) loop(ctx context.Context) error {
	defer m.writer.wait()
	m.due[dueRemember] = time.Now().Add(rememberAfter)
	timer := time.NewTimer(rememberAfter)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case news := <-m.mirror.told:
			m.hear(news)
		case r := <-m.writer.done:
			m.wrote(r)
		case <-m.session.changed:
		case <-m.wake:
		case <-timer.C:
		}
		m.tend(ctx, time.Now())
		m.publish()
		timer.Reset(m.due.next(time.Now()))
	}
}

// hear takes in what the mirror tells.
func (m *Member) hear(news any) {
	now := time.Now()
	switch n := news.(type) {
	case linked:
		m.conn, m.failure = n.conn, nil
		m.session.use(n.conn)
		if m.away {
			m.away = false
			m.view.peers.extend(now) // they too could not reach etcd
			m.log.Info("etcd answers again", "endpoint", n.Endpoints()[0])
		}
	case cut:
		m.failure = n.err
		m.metrics.failed(kindEtcd)
		if m.conn == nil && !m.away { // a cut is mended in no time, as a rule
			m.away = true
			m.log.Warn("etcd does not answer: going on with what is known", "err", n.err)
		}
		m.conn = nil
		m.session.use(nil)
	default:
		m.view.take(news, &m.claimer, now)
		if _, ok := news.(listed); ok { // all that was written is in the list, or in another history
			m.writer.seen, m.claimer.wrote, m.memory = 0, 0, false
		}
	}
}

// tend does what is to be done now.
func (m *Member) tend(ctx context.Context, now time.Time) {
	vacant := m.hearWishes(now)
	if m.view.set == nil {
		m.recall(now)
		return
	}
	m.view.expire(now)
	if next := m.view.peers.next(); !next.IsZero() {
		m.due[duePeers] = next
	}
	switch {
	case m.view.config.network == nil:
		m.enter(decision{state: Waiting, reason: errText(m.view.config.err)})
		return
	case len(m.claimer.wish.Endpoints) == 0:
		m.enter(decision{state: Waiting, reason: "waiting for the host's address on the underlay"})
		return
	}
	d := m.claimer.decide(m.view.facts(m.session.now(), vacant))
	m.view.settle(m.claimer.key)
	m.leaves = d.leaves
	if d.write == nil {
		m.writer.refusal = "" // there is nothing to refuse
	}
	if d.reason == "" {
		d.reason = cmp.Or(m.writer.refusal, m.view.problem())
	}
	m.enter(d)
	if d.drop {
		m.session.leave()
	}
	m.session.keep(d.keep)
	if d.open {
		m.session.open()
	}
	if d.write == nil || m.conn == nil || m.view.revision < m.writer.seen || !m.due.due(dueWrite, now) || d.write.calm && !m.due.due(dueChange, now) {
		return
	}
	if wait := m.writer.start(ctx, m.conn, d.write, m.view.config); wait > 0 {
		m.due[dueWrite] = now.Add(wait)
	}
}

// hearWishes takes in what the host wants now, and returns which subnets are vacant.
func (m *Member) hearWishes(now time.Time) (vacant []netip.Prefix) {
	m.mu.Lock()
	w := m.wishes
	m.wishes.vacant = nil
	m.mu.Unlock()
	if w.wish == nil {
		return nil
	}
	m.claimer.nic, m.follows = w.wish.NIC, w.wish.Config
	before, next := m.claimer.wish, w.wish.Lease
	if before.Equal(next) {
		return w.vacant
	}
	m.claimer.wish = next
	m.due[dueChange] = now.Add(rand.N(spread * time.Duration(1+len(m.view.peers.known))))
	if next.HostID != before.HostID {
		m.claimer.past = past{}
	}
	if next.HostID != before.HostID && m.cfg.Cache != nil {
		if err := m.cfg.Cache.Forget(next.HostID); err != nil {
			m.log.Warn("cannot forget the identity that was another's", "err", err)
		}
	}
	if next.HostID != before.HostID || !sameAddresses(before, next) {
		m.view.identify(next)
		if len(before.Endpoints) > 0 {
			m.mirror.reconnect()
		}
	}
	return w.vacant
}

// wrote takes in what became of a write.
func (m *Member) wrote(r result) {
	if wait := m.writer.end(r); wait > 0 {
		m.due[dueWrite] = time.Now().Add(wait)
	}
	switch {
	case r.lost:
		m.metrics.failed(kindRace)
	case r.unknown:
		m.session.lost(r.write.leaseID)
	case r.err != nil:
		m.metrics.failed(kindEtcd)
	default:
		m.claimer.done(r.write, r.revision)
		if r.write.value == nil {
			m.log.Info("gave back a lease of the host's own", "subnet", r.write.key)
		}
	}
}

// enter changes the state of the own lease and says so where that is news.
func (m *Member) enter(d decision) {
	if d.state == m.state && d.reason == m.reason {
		return
	}
	before := m.state
	m.state, m.reason = d.state, d.reason
	switch key := m.claimer.key; {
	case d.state == Taken:
		m.metrics.failed(kindTaken)
		m.log.Error("the host's subnet is taken", "subnet", key, "reason", d.reason)
	case d.state == Claiming && key == "" && d.reason != "":
		m.metrics.failed(kindFull)
		m.log.Warn("there is no subnet for the host", "reason", d.reason)
	case d.reason != "" && d.state != Waiting:
		m.log.Warn("the host's lease needs attention", "subnet", key, "reason", d.reason)
	case d.state == Held && before != Held:
		m.log.Info("holding a lease", "subnet", key)
	case d.state == Claiming && before == Held && m.claimer.had: // otherwise the host gave it up
		m.metrics.failed(kindLost)
		m.log.Warn("the host's lease is lost: claiming it again", "subnet", key)
	}
}
