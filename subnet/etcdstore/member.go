package etcdstore

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/overlayd/overlayd/subnet"
)

// JoinConfig says who joins the network.
type JoinConfig struct {
	HostID   string         // random, remembered by the host; required
	Host     string         // the host's name, for people
	TTL      time.Duration  // of the lease, from its last renewal on; 0: 24 h
	Previous []netip.Prefix // subnets that the host had before, asked for again
	Grace    time.Duration  // how long peers that vanish together are kept; 0: 2 min
	Seed     Seed
	Metrics  prometheus.Registerer // of the Member; nil: none
}

// Seed is what a host remembers of the network. It is not told back to the host before etcd was listed; then the
// remembered peers that etcd does not hold are given up as others that vanish together are, and the remembered config
// is in force as long as etcd has none.
type Seed struct {
	Config []byte // the network config; nil: none
	Peers  []*subnet.Record
}

// State is how the host stands to its lease.
type State string

// The states of a lease.
const (
	Waiting  State = "waiting"  // for etcd, for a network config, or for Advertise
	Claiming State = "claiming" // on the way, or in want of a free subnet
	Held     State = "held"
	Taken    State = "taken" // the subnet that was held belongs to another host now
)

// Own is the host's own lease.
type Own struct {
	State   State
	Record  subnet.Record // as last held; without endpoints before that
	Reason  string        // what needs attention, or is waited for; empty if all is well
	Expires time.Time     // when the lease ends if it cannot be renewed; zero: unknown, or it does not expire
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
	// Complete says that the Peers of all Updates until now are the whole of etcd at Revision, and stays true.
	Complete bool
	Revision int64
}

// Member is one host's membership of the network: it holds the host's lease and follows the leases of its peers.
type Member struct {
	store   *Store
	cfg     JoinConfig
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{} // capacity 1: the host has a new wish
	changed chan struct{} // capacity 1: there is something to Take

	mu     sync.Mutex // guards what the host and Run share
	wishes wishes
	out    Update

	// The rest belongs to Run.
	endpoint  string        // at which etcd is followed, or was last
	patience  time.Duration // bounds a request
	misses    int           // requests in a row that were not answered within patience
	cluster   uint64        // etcd's id of itself
	revision  int64         // up to which everything is known; 0: nothing is, list
	followed  int64         // revision as it last was
	newest    newest
	config    config
	set       *subnet.Set // nil before the first list
	up, away  bool        // etcd is followed; the host was told that it is not
	peers     *peers
	skips     *skips
	strays    map[string]int64 // leases of the host's own that it does not hold: key → revision
	own       own
	announced subnet.Lease // whose addresses decided which leases are the host's own
	moved     bool         // the host has other addresses than when it connected
	writes    *rate.Limiter
	refusal   string            // why etcd does not take what the host wants to write; empty: it does
	gaveUp    string            // key of the lease that the host was told to leave
	stuck     bool              // no subnet was free; wait until something changes
	retry     time.Time         // when to try to write again; zero: at once
	renew     time.Time         // when to renew the lease
	twins     map[string]string // leases of other hosts with our address: key → what to tell
	challenge challenge         // to who may be in the own lease's way
	toAnswer  *challengeValue   // nil: nothing
}

// wishes is what the host wants of its membership.
type wishes struct {
	lease   *subnet.Lease // nil: nothing yet
	abandon bool
}

// Join makes the host a member. Nothing happens before Run. No two Members have the same Metrics.
func (s *Store) Join(cfg JoinConfig) *Member {
	if cfg.TTL == 0 {
		cfg.TTL = 24 * time.Hour
	}
	if cfg.Grace == 0 {
		cfg.Grace = 2 * time.Minute
	}
	m := &Member{
		store:    s,
		cfg:      cfg,
		log:      s.log,
		wake:     make(chan struct{}, 1),
		changed:  make(chan struct{}, 1),
		peers:    newPeers(cfg.Grace),
		strays:   make(map[string]int64),
		writes:   rate.NewLimiter(1, 5),
		patience: requestTimeout,
		twins:    make(map[string]string),
		own:      own{state: Waiting, reason: "waiting for etcd"},
	}
	m.metrics = newMetrics(cfg.Metrics, m)
	m.skips = newSkips(s.log, m.metrics)
	m.seed()
	m.publish(nil)
	return m
}

func (m *Member) seed() {
	network, err := subnet.ParseNetwork(m.cfg.Seed.Config)
	if err != nil {
		return // without a network the peers mean nothing
	}
	m.config = config{raw: m.cfg.Seed.Config, network: &network}
	for _, r := range m.cfg.Seed.Peers {
		if r.HostID != m.cfg.HostID {
			m.peers.remember(r.Key(), r)
		}
	}
	m.cfg.Seed = Seed{} // many leases, soon out of date
}

// Advertise sets what the host's lease is to say: Backend and, for each family, PublicIP and Data; an endpoint's
// family is that of its PublicIP, or of its Subnet, which otherwise does not matter. The claim waits for the first
// call, later ones change the lease.
func (m *Member) Advertise(l subnet.Lease) {
	l.HostID, l.Host = m.cfg.HostID, m.cfg.Host
	l.Endpoints = slices.Clone(l.Endpoints)
	m.wish(func(w *wishes) { w.lease = &l })
}

// Abandon gives up a subnet that is Taken or that the network does not lease any more, and claims another. It does
// nothing while all is well.
func (m *Member) Abandon() { m.wish(func(w *wishes) { w.abandon = true }) }

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

// signal wakes the receiver of a channel of capacity 1.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// publish lets the host Take what Run knows; failure is why etcd does not answer, nil if it does.
func (m *Member) publish(failure error) {
	if m.revision != 0 {
		m.followed = m.revision
	}
	var news map[string]*subnet.Record
	if m.set != nil { // until then the host makes do with what it remembers
		news = m.peers.take()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	next := Update{
		Own:       m.own.report(m.twins),
		Connected: failure == nil && m.cluster != 0,
		Err:       failure,
		Peers:     m.out.Peers,
		Complete:  m.set != nil,
		Revision:  m.followed,
	}
	if failure == nil {
		next.Err = m.config.err
	}
	if m.set != nil {
		next.Network, next.Config = m.config.network, m.config.raw
	}
	if len(news) == 0 && same(next, m.out) {
		return
	}
	if next.Peers == nil {
		next.Peers = news
	} else {
		maps.Copy(next.Peers, news)
	}
	m.out = next
	m.metrics.up.Set(map[bool]float64{true: 1}[next.Connected])
	signal(m.changed)
}

// same reports whether two updates say the same but for Peers. A new revision alone is no news.
func same(a, b Update) bool {
	return a.Network == b.Network && bytes.Equal(a.Config, b.Config) && a.Connected == b.Connected &&
		errText(a.Err) == errText(b.Err) && a.Complete == b.Complete && a.Own.State == b.Own.State && a.Own.Reason == b.Own.Reason &&
		a.Own.Expires.Equal(b.Own.Expires) && a.Own.Record.Equal(b.Own.Record)
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Run claims and keeps the lease and follows the peers until ctx ends; then it returns nil. What fails it tries again.
// It leaves the lease in etcd. It must be called once.
func (m *Member) Run(ctx context.Context) error {
	wait := time.Duration(0)
	for i := 0; ; i++ {
		// One endpoint at a time: then an answer on the connection says that the watch on it lives too.
		endpoints := m.store.client.current()
		err := m.followOne(ctx, endpoints[i%len(endpoints)])
		if ctx.Err() != nil {
			return nil
		}
		wait = m.disconnected(err, wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Duration(rand.Int64N(int64(wait) + 1))):
		}
	}
}

// followOne follows an endpoint until that fails, the endpoint is retired, or ctx ends.
func (m *Member) followOne(ctx context.Context, e endpoint) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.retired, cancel)()
	err := m.follow(ctx, e.url)
	if e.retired.Err() != nil {
		return errRetired
	}
	return err
}
