// Package names answers containers' questions for names, at the addresses of their bridge on this host: for those of containers, in
// the zone overlay., by what is known of endpoints; for all others by the host's own resolvers. It answers this host alone, and its
// containers.
package names

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
)

// FileName is the file beside subnet.env that says, as a resolv.conf(5), where containers of this host ask. There is none as
// long as names are not answered.
const FileName = "resolv.conf"

const (
	port = 53
	// settling is how long addresses may be in motion before they are looked at.
	settling = 50 * time.Millisecond
	// again is when it is tried again what failed.
	again = 3 * time.Second
)

// Config is what a Server is made of. Everything is required but Registerer.
type Config struct {
	ResolvConf string // the host's
	Dir        string // of subnet.env, where FileName is
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Server answers. All methods but Run may be called at any time.
type Server struct {
	*Index
	*Demand
	cfg     Config
	zone    zone
	forward forwarder
	limits  *limits
	metrics *prometheus.CounterVec
	wake    chan struct{}

	// port is where names are answered, and links says by which addresses: the real ones, but in tests.
	port  uint16
	links func(own []netip.Prefix, serving []netip.Addr) ([]gateway, []netip.Prefix, error)

	mu        sync.Mutex
	own       *subnet.Record
	listeners map[netip.Addr]*listener
	err       error
}

// New returns a Server that answers nothing until Run.
func New(cfg Config) *Server {
	s := &Server{
		Index: NewIndex(), Demand: NewDemand(), cfg: cfg, limits: newLimits(), wake: make(chan struct{}, 1),
		port: port, links: gateways, listeners: map[netip.Addr]*listener{},
	}
	s.zone = zone{s.Index, s.Demand}
	s.forward = forwarder{newResolvers(cfg.ResolvConf), port}
	s.metrics = promauto.With(cfg.Registerer).NewCounterVec(prometheus.CounterOpts{
		Name: "overlayd_names_queries_total",
		Help: "Questions for names, by what became of them: those for names of containers were answered, or not there; others were asked of the " +
			"host's resolvers, or those did not answer; the rest was refused, too much, or no question.",
	}, []string{"outcome"})
	for _, o := range outcomes {
		s.metrics.WithLabelValues(string(o))
	}
	promauto.With(cfg.Registerer).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "overlayd_names_endpoints", Help: "Endpoints, of this host and of others, that are found by their names here.",
	}, func() float64 { return float64(s.size()) })
	return s
}

// Own says which lease this host has.
func (s *Server) Own(own *subnet.Record) {
	s.Index.Own(own)
	s.mu.Lock()
	s.own = own
	s.mu.Unlock()
	task.Signal(s.wake)
}

// Run answers until ctx ends; then it returns nil.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	for ctx.Err() == nil {
		moved, stop := watchAddrs()
		s.follow(ctx, moved)
		stop()
	}
	return nil
}

// follow listens where it should, until ctx ends, or moved cannot tell any more.
func (s *Server) follow(ctx context.Context, moved <-chan struct{}) {
	for {
		wait := time.Hour
		if err := s.arrange(ctx); err != nil {
			wait = again
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.wake:
		case <-timer.C:
		case _, ok := <-moved:
			if !ok {
				timer.Stop()
				select { // whatever keeps us from following may do so for long
				case <-ctx.Done():
				case <-time.After(again):
				}
				return
			}
			time.Sleep(settling)
		}
		timer.Stop()
	}
}

// arrange listens at the addresses that this host has within its subnets, and says so.
func (s *Server) arrange(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var own []netip.Prefix
	if s.own != nil {
		own = s.own.Subnets()
	}
	serving := make([]netip.Addr, 0, len(s.listeners))
	for addr := range s.listeners {
		serving = append(serving, addr)
	}
	want, near, err := s.links(own, serving)
	if err != nil {
		err = fmt.Errorf("names: cannot look at this host's addresses: %w", err)
	} else {
		s.Index.Links(near)
		err = s.listen(ctx, want)
	}
	if err = errors.Join(err, s.offer(own, err == nil)); err != nil {
		err = errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if fmt.Sprint(err) != fmt.Sprint(s.err) {
		if err != nil {
			s.cfg.Log.Warn("names are not answered everywhere", "err", err)
		} else {
			s.cfg.Log.Info("names are answered again")
		}
	}
	s.err = err
	return err
}

// listen listens at some addresses, and no others.
func (s *Server) listen(ctx context.Context, want []gateway) error {
	for addr, l := range s.listeners {
		if !slices.Contains(want, l.gateway) {
			l.close()
			delete(s.listeners, addr)
			s.cfg.Log.Info("names are not answered here any more", "address", addr)
		}
	}
	var errs []error
	for _, g := range want {
		if s.listeners[g.addr] != nil {
			continue
		}
		l, err := s.open(ctx, g)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.listeners[g.addr] = l
		s.cfg.Log.Info("names are answered", "address", g.addr)
	}
	return errors.Join(errs...)
}

// offer writes the file, or removes it where nobody would answer.
func (s *Server) offer(own []netip.Prefix, answers bool) error {
	text := ""
	if answers && len(own) > 0 {
		text = "# Written by overlayd: where this host's containers ask for names.\n"
		for _, p := range own {
			text += "nameserver " + p.Masked().Addr().Next().String() + "\n"
		}
	}
	path := filepath.Join(s.cfg.Dir, FileName)
	if text == "" {
		return Withdraw(s.cfg.Dir)
	}
	if have, err := os.ReadFile(path); err == nil && string(have) == text {
		return nil
	}
	if err := renameio.WriteFile(path, []byte(text), 0o644, renameio.WithStaticPermissions(0o644)); err != nil {
		return fmt.Errorf("names: containers are not told of them: %w", err)
	}
	return nil
}

// Withdraw removes the file by which containers are told whom to ask.
func Withdraw(dir string) error {
	if err := os.Remove(filepath.Join(dir, FileName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("names: %w", err)
	}
	return nil
}

func (s *Server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		l.close()
	}
	clear(s.listeners)
}

// local says whether names are answered at an address: to ask there would be to ask ourselves.
func (s *Server) local(addr netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners[addr] != nil
}

// Status says where names are answered, and what is contested.
func (s *Server) Status() *api.Names {
	status := &api.Names{Listening: []string{}, Endpoints: s.size(), Contested: s.contested(), Followed: []string{}}
	if all, followed := s.Wanted(); all {
		status.Followed = []string{"*"}
	} else {
		status.Followed = append(status.Followed, followed...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for addr := range s.listeners {
		status.Listening = append(status.Listening, addr.String())
	}
	slices.Sort(status.Listening)
	if s.err != nil {
		status.Error = s.err.Error()
	}
	return status
}

// Problem says what needs attention, in one line; nil: nothing does.
func (s *Server) Problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
