package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// announcer is a running overlayd-bgp.
type announcer struct {
	cfg   config
	log   *slog.Logger
	speak *speaker

	mu      sync.Mutex
	away    error             // why etcd is not followed; nil: it is
	refused map[string]string // leases that are not announced, by key
	sure    bool              // what is announced is what etcd has, or had
}

// run announces the leases until ctx ends, and then leaves without a word.
func (c config) run(ctx context.Context, stderr io.Writer) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return fmt.Errorf("log-level: %w", err)
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	client, err := etcdstore.NewClient(c.client.Etcd.Config, log)
	if err != nil {
		return err
	}
	defer client.Close()
	store, err := client.Store(c.client.Etcd.Prefix)
	if err != nil {
		return err
	}
	p := &announcer{cfg: c, log: log, refused: map[string]string{}}
	serve, err := p.listen()
	if err != nil {
		return err
	}
	if p.speak, err = newSpeaker(c, log); err != nil {
		return err
	}
	p.speak.changed = p.tell
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serve(ctx) })
	g.Go(func() error { return p.follow(ctx, store) })
	return g.Wait()
}

// follow announces what etcd has. Routers are not spoken to before it is known: to say "that is all" too early would have them
// forget what they were told before this program was started anew.
func (p *announcer) follow(ctx context.Context, store *etcdstore.Store) error {
	for listing, err := range store.Follow(ctx) {
		if err != nil {
			if p.note(err) {
				p.log.Warn("etcd cannot be followed: what was announced stays so", "err", err)
			}
			err = p.begin(ctx, p.recall())
		} else {
			if p.note(nil) {
				p.log.Info("etcd is back: following it again")
			}
			announce, refused := plan(listing, p.cfg.Neighbors)
			p.refuse(refused)
			if err := p.cfg.remember(announce); err != nil {
				p.log.Warn("cannot remember what is announced, for a start without etcd", "err", err)
			}
			err = p.begin(ctx, announce)
		}
		if err != nil {
			return err
		}
		p.tell()
	}
	return nil
}

// begin announces r, if it is known, and speaks with the routers from then on.
func (p *announcer) begin(ctx context.Context, r routes) error {
	if r == nil {
		return nil
	}
	if err := p.speak.announce(r); err != nil {
		return err
	}
	p.mu.Lock()
	first := !p.sure
	p.sure = true
	p.mu.Unlock()
	if !first {
		return nil
	}
	p.log.Info("calling the routers", "routes", len(r), "routers", len(p.cfg.Neighbors))
	return p.speak.call(ctx)
}

// recall is what this host remembers, if it knows nothing better.
func (p *announcer) recall() routes {
	p.mu.Lock()
	sure := p.sure
	p.mu.Unlock()
	if sure {
		return nil
	}
	r, err := p.cfg.recall()
	if err != nil {
		p.log.Warn("cannot recall what was announced last", "err", err)
	}
	return r
}

// note takes in whether etcd is followed, and says whether that is news.
func (p *announcer) note(err error) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	news = (err == nil) != (p.away == nil)
	p.away = err
	return news
}

// refuse takes in which leases are not announced, and says of those that are new why.
func (p *announcer) refuse(refused map[string]string) {
	p.mu.Lock()
	before := p.refused
	p.refused = refused
	p.mu.Unlock()
	for key, why := range refused {
		if before[key] != why {
			p.log.Warn("lease is not announced", "subnet", key, "why", why)
		}
	}
}

// tell tells systemd how it stands: ready once it is known what to announce.
func (p *announcer) tell() {
	s := p.status()
	up := 0
	for _, n := range s.Neighbors {
		if n.State == established {
			up++
		}
	}
	text := fmt.Sprintf("STATUS=announcing %d routes to %d of %d routers", len(s.Routes), up, len(s.Neighbors))
	if s.Etcd != "" {
		text += ", etcd cannot be followed"
	}
	if p.isSure() {
		text = "READY=1\n" + text
	}
	if _, err := daemon.SdNotify(false, text); err != nil {
		p.log.Warn("cannot notify systemd", "err", err)
	}
}

func (p *announcer) isSure() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sure
}

// status is how it stands.
type status struct {
	Routes    routes            `json:"routes"`
	Neighbors []neighborStatus  `json:"neighbors"`
	Refused   map[string]string `json:"refused"`
	Etcd      string            `json:"etcd,omitempty"` // why it is not followed
}

type neighborStatus struct {
	Address netip.Addr `json:"address"`
	AS      uint32     `json:"as"`
	session
}

func (p *announcer) status() status {
	p.mu.Lock()
	s := status{Refused: p.refused, Neighbors: []neighborStatus{}}
	if p.away != nil {
		s.Etcd = p.away.Error()
	}
	p.mu.Unlock()
	p.speak.mu.Lock()
	defer p.speak.mu.Unlock()
	s.Routes = p.speak.announced
	for _, n := range p.cfg.Neighbors {
		se := p.speak.sessions[n.Address]
		if se.State == "" {
			se = session{State: "idle", Since: started}
		}
		s.Neighbors = append(s.Neighbors, neighborStatus{n.Address, n.AS, se})
	}
	return s
}

var started = time.Now()
