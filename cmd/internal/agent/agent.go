// Package agent is the loop at the heart of overlayd: leases come in, a plan is made of them, the kernel is
// brought there, and when it is, the world is told.
package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/backend/extension"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/sysctl"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

const (
	// housekeeping is how often files that others may remove are looked after.
	housekeeping = time.Second
	// settling is how long the host's own links may be in motion before they are looked at: a router's table of routes
	// must not cost a look for each of them.
	settling = 100 * time.Millisecond
	// patience is how long the kernel may be behind before a host that was ready is not: every event puts it behind
	// for about a millisecond.
	patience = time.Second
)

// membership holds the host's lease and follows those of its peers.
type membership interface {
	Run(context.Context) error
	Advertise(etcdstore.Wish)
	Vacant([]netip.Prefix)
	Changed() <-chan struct{}
	Take() etcdstore.Update
}

// reconciler brings the kernel to the network's desired objects.
type reconciler interface {
	Replace(all []kernel.Claim)
	Update(changed []kernel.Claim)
	Status() kernel.Status
	Changed() <-chan struct{}
	UnderlayChanged() <-chan struct{}
	Sessions() map[kernel.WGPeerID]kernel.Session
	SessionsChanged() <-chan struct{}
	Greet(...kernel.WGPeerID)
}

// policies are in force, or are to be.
type policies interface {
	Run(context.Context) error
	Own(*subnet.Record)
	Peers(map[string]*subnet.Record)
	Status() api.Policy
	Problem() error
	Endpoints() []api.Endpoint
	Denials() api.Denials
	Changed() <-chan struct{}
	Applied() <-chan struct{}
}

// commands are those that the network's config may have the host run.
type commands interface {
	Run(context.Context) error
	Told(extension.Commands) (json.RawMessage, error)
	Serve(extension.Site)
	Peers(map[string]*subnet.Record)
	PeerErr(key string) error
	Problem() error
	Changed() <-chan struct{}
	Applied() <-chan struct{}
}

// answers are those to questions for names.
type answers interface {
	Status() *api.Names
	Problem() error
}

// Config is what an agent is made of. Everything is required but Network, Share, Names, Pin, Last, Watchdog and Registerer. Of what is
// to be run, the agent runs Member, Policy and Commands.
type Config struct {
	Network    string // its name; empty: it has none
	Share      *Share // of the host; nil: there is no other network
	Member     membership
	Kernel     reconciler
	Firewall   whole[firewall.Rule]
	Elements   elements                          // of the firewall's sets
	Unguarded  func() error                      // why there is no guard; nil: there is
	Dropped    func() (map[string]uint64, error) // packets, by the reason
	Sysctls    whole[sysctl.Param]
	Policy     policies
	Commands   commands
	Fast       fast
	Names      answers                                                  // nil: names are not answered
	FindHost   func(n subnet.Network, inUse []netip.Addr) (Host, error) // looks at the host's links as they are now
	OnLink     func([]netip.Addr) ([]int, error)                        // see underlay.OnLink
	EtcdAddrs  func() []netip.Addr                                      // where etcd is, as far as it is known
	AskEtcd    func(context.Context) error                              // whether etcd answers now
	Vacate     func([]netip.Prefix) (bool, error)                       // see Vacate
	Pin        *subnet.Network                                          // what etcd's network must have the ranges of; nil: it may have any
	State      *State
	Last       leasecache.View // what the host remembers; the zero View: nothing
	CacheErr   func() error    // why that cannot be written; nil: it can
	CertErr    func() error    // why the host's certificate will end and is not renewed; nil: it will not
	HostName   string
	Version    string
	Endpoints  func() []string // of etcd now, for people
	SubnetFile string
	Shield     Shield
	Notify     func(state string) // sd_notify(3)
	Watchdog   time.Duration      // how often systemd wants to hear that the loop turns; 0: never
	Settled    func()             // called once, after all that the start takes
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Agent serves one network on one host.
type Agent struct {
	cfg     Config
	started time.Time
	settled func()
	orders  chan order
	ended   chan struct{} // closed when the loop has

	mu sync.Mutex // guards what follows: the loop writes, Status reads

	// What is known.
	latest  etcdstore.Update          // without its Peers, which are in peers
	denied  []byte                    // its config, if it was refused and nothing that bears on that has changed; else nil
	network *subnet.Network           // in force; nil until known
	config  []byte                    // network as the operator wrote it
	own     *subnet.Record            // as last held
	former  []netip.Prefix            // subnets that were the host's before, and that containers may still have
	peers   map[string]*subnet.Record // by lease key; never changed, only replaced
	nearby  map[netip.Addr]bool       // which hosts are on link, as far as it was asked
	awaited <-chan time.Time          // until then none is taken to be; nil: no need
	planner *planner                  // for network and the host as it was last looked at

	// What was made of it.
	unannounced bool                 // peers have not been told of planner
	rotated     time.Time            // when the host last got another wireguard key
	rekeyed     map[string]time.Time // by lease key, the peers that told of another, and when
	turns       map[string]time.Time // by lease key, the peers that are about to change theirs, and since when that is known
	said        *planner             // what they were told of last
	retirement  retirement
	programmed  bool               // the kernel has been given a complete state
	fastOffered bool               // the fast path knows the host's end as the kernel has it
	errs        map[string]error   // by lease key: why the peer is not reached
	claims      map[claim][]string // by lease key, the peers that make each; the first, which is the oldest, has it
	contested   map[claim]bool     // those that changed hands since the peers that make them were planned
	conflicting map[string]error   // by lease key, the peers that have this host's MAC and the older lease: what to do
	ground      ground

	// What the world was told.
	problems map[problem]string
	ready    bool
	behind   time.Time // since when the kernel is not complete; zero: it is
	stage    string
	stuck    bool      // it will not be ready before somebody does something, but for what others do meanwhile
	waits    time.Time // since when the claim waits; zero: it does not
	offered  bool      // subnet.env is there
	refused  time.Time // since when it is not, and containers are refused; zero: they are not
	moving   bool      // containers are refused so that the host can move to the subnet reserved for it
	surplus  time.Time // since when the host has leases beside its own; zero: it has none
}

// problem names something that needs the operator's attention.
type problem uint8

const (
	problemConfig problem = iota
	problemUnderlay
	problemEnv
	problemCache
	problemVacate
	problemNetwork
	problemIdentity
	problemGuard
	problemCertificate
	problemPolicy
	problemCommand
	problemNames
)

// New returns an agent that does nothing until Run.
func New(cfg Config) *Agent {
	a := &Agent{
		cfg:         cfg,
		started:     time.Now(),
		orders:      make(chan order),
		ended:       make(chan struct{}),
		turns:       map[string]time.Time{},
		rekeyed:     map[string]time.Time{},
		peers:       map[string]*subnet.Record{},
		settled:     sync.OnceFunc(cfg.Settled),
		errs:        map[string]error{},
		conflicting: map[string]error{},
		contested:   map[claim]bool{},
		problems:    map[problem]string{},
		stage:       "waiting for etcd",
	}
	a.register()
	return a
}

// Run serves the network until ctx ends, and then leaves the kernel as it is, so that traffic goes on. It fails
// if no host can serve the network as it is configured.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.cfg.Member.Run(ctx) })
	g.Go(func() error { return a.cfg.Policy.Run(ctx) })
	g.Go(func() error { return a.cfg.Commands.Run(ctx) })
	g.Go(func() error { return a.loop(ctx) })
	return g.Wait()
}

func (a *Agent) loop(ctx context.Context) error {
	defer close(a.ended)
	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	var watchdog, look <-chan time.Time
	var looked time.Duration // how long the last look took: all of them must take no more than a tenth of a CPU
	if a.cfg.Watchdog > 0 {
		t := time.NewTicker(a.cfg.Watchdog)
		defer t.Stop()
		watchdog = t.C
	}
	a.cfg.Notify("STATUS=" + a.stage)
	for {
		var err error
		underlay := a.cfg.Kernel.UnderlayChanged()
		if look != nil {
			underlay = nil // it will be looked at: not to be woken for each of a thousand routes
		}
		select {
		case <-ctx.Done():
			a.cfg.Notify("STOPPING=1")
			return nil
		case <-a.cfg.Member.Changed():
			err = a.locked(a.follow)
		case <-underlay:
			look = time.After(max(settling, 10*looked))
			continue
		case <-look:
			begin := time.Now()
			err = a.locked(a.lookAround)
			look, looked = nil, time.Since(begin)
		case <-watchdog:
			a.cfg.Notify("WATCHDOG=1")
			continue
		case <-tick.C:
			if look == nil && !slices.Equal(a.ground.etcd, a.cfg.EtcdAddrs()) {
				look = time.After(settling)
			}
			err = a.locked(a.keepHouse)
		case <-a.awaited:
			err = a.locked(a.stopWaiting)
		case o := <-a.orders:
			o.done <- a.locked(o.do)
		case <-a.cfg.Share.Changed():
			err = a.locked(a.heedOthers)
		case <-a.cfg.Fast.Loaded():
			err = a.locked(a.fillFast)
		case <-a.cfg.Kernel.SessionsChanged():
			err = a.locked(a.meet)
		case <-a.cfg.Commands.Changed():
			err = a.locked(a.heedCommands)
		case <-a.cfg.Kernel.Changed():
		case <-a.cfg.Firewall.Changed():
		case <-a.cfg.Elements.Changed():
		case <-a.cfg.Sysctls.Changed():
		case <-a.cfg.Policy.Changed():
			err = a.locked(func() error { a.attend(problemPolicy, a.cfg.Policy.Problem()); return nil })
		}
		if err == nil {
			err = a.locked(a.announce)
		}
		if err != nil {
			return err
		}
		if a.publish() {
			go a.settled()
		}
		_ = a.locked(a.offerFast) // after the world is told: the slow way is there
	}
}

// keepHouse looks after what changes without a word.
func (a *Agent) keepHouse() error {
	a.leave()
	a.bury(time.Now())
	a.attend(problemCache, a.cfg.CacheErr())
	a.attend(problemGuard, cmp.Or(a.cfg.Unguarded(), a.cfg.Elements.Status().Err))
	a.attend(problemCertificate, a.cfg.CertErr())
	if a.cfg.Names != nil {
		a.attend(problemNames, a.cfg.Names.Problem())
	}
	return nil
}

// locked runs one step of the loop with the state held.
func (a *Agent) locked(step func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return step()
}
