package etcdstore

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// renewAtMost is the longest time between renewals. A third of the TTL would be enough for etcd, but hosts with a day's
// lease should still have most of it when etcd breaks.
const renewAtMost = time.Hour

// grant is one of etcd's own leases, which holds keys as long as it is renewed.
type grant struct {
	id      int64     // 0: none
	expires time.Time // unless it is renewed; zero: not known yet
	dead    int64     // one that the session had before, and that has ended or is of no use
	err     error     // why etcd refuses a new one
}

// session keeps one of etcd's leases alive: one that it is told to adopt, or a new one. It is a task of its own, for a
// renewal may take long.
type session struct {
	ttl     int64 // seconds
	changed chan struct{}
	wake    chan struct{}

	mu      sync.Mutex
	conn    *conn // nil: etcd is away
	grant   grant
	granted bool // by this process, for ttl
	wanted  bool // a new one
	kept    bool // renew it
	renew   time.Time
	wait    backoff
}

func newSession(ttl time.Duration) *session {
	return &session{
		ttl:     max(1, int64(math.Ceil(ttl.Seconds()))),
		changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
}

// set changes what the session is to do, if that is anything new.
func (s *session) set(change func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if change() {
		signal(s.wake)
	}
}

// use gives the session a connection; nil: there is none.
func (s *session) use(c *conn) {
	s.set(func() bool { s.conn = c; return true })
}

// follow has the session do what a decision about the own lease asks for: forget its lease, which ends by itself; renew
// one, its own or one that an earlier run of the host left; get a new one, if it has none.
func (s *session) follow(d decision) {
	s.set(func() (news bool) {
		if d.drop {
			s.end()
		}
		if d.keep != 0 && d.keep != s.grant.id {
			s.grant, s.granted, s.renew = grant{id: d.keep, dead: s.grant.dead}, false, time.Time{}
		}
		opens := d.open && !s.wanted && s.grant.id == 0
		news = opens || s.kept != (d.keep != 0) || s.renew.IsZero()
		s.wanted, s.kept = s.wanted || opens, d.keep != 0
		return news
	})
}

// end takes note that the lease is of no use any more. The lock is held.
func (s *session) end() {
	if s.grant.id != 0 {
		s.grant = grant{dead: s.grant.id}
	}
	s.granted, s.kept, s.wait, s.renew = false, false, 0, time.Time{}
}

// lost takes in that etcd does not know the lease.
func (s *session) lost(id int64) {
	s.set(func() bool {
		if s.grant.id == id {
			s.end()
		}
		return false
	})
}

// now is what the session has.
func (s *session) now() grant {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.grant
}

// Run grants and renews until ctx ends; then it returns nil, and the lease stays.
func (s *session) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		timer.Reset(s.step(ctx))
	}
}

// step does what is due, and returns when the next is.
func (s *session) step(ctx context.Context) time.Duration {
	s.mu.Lock()
	c, id := s.conn, s.grant.id
	due := time.Until(s.renew)
	idle := c == nil || !s.wanted && !s.kept
	opens := s.wanted
	s.mu.Unlock()
	switch {
	case idle:
		return renewAtMost
	case due > 0:
		return due
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	asked := time.Now()
	if opens {
		got, err := c.Grant(ctx, s.ttl)
		if err != nil {
			return s.failed(c, err)
		}
		s.renewed(asked, int64(got.ID), got.TTL, true)
		return 0
	}
	ttl, err := keepAliveOnce(ctx, c.Client, id)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return s.failed(c, err)
	}
	s.renewed(asked, id, ttl, false)
	return 0
}

// renewed takes in that a lease was good for ttl seconds from asked on; 0: it has ended.
func (s *session) renewed(asked time.Time, id, ttl int64, opened bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer signal(s.changed)
	switch {
	case opened:
		s.wanted, s.granted, s.grant = false, true, grant{id: id, dead: s.grant.dead}
	case id != s.grant.id:
		return // the session was told otherwise meanwhile
	case ttl == 0, !s.granted && ttl != s.ttl: // an earlier run wanted another TTL
		s.end()
		return
	}
	left := time.Duration(ttl) * time.Second
	s.grant.expires, s.wait = asked.Add(left), 0
	// Hosts that started together must not renew together for ever.
	pause := min(left/3, renewAtMost)
	s.renew = asked.Add(pause - rand.N(pause/3))
}

// failed takes in that etcd did not do it, and returns when to try again. That it refuses leaves the connection as good
// as it was; otherwise another is needed.
func (s *session) failed(c *conn, err error) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !refuses(err) {
		c.fail(describe(err, c.Endpoints()...))
		return renewAtMost // use wakes it
	}
	if s.grant.id == 0 {
		s.grant.err = err
		signal(s.changed)
	}
	wait := s.wait.next(maxBackoff, time.Minute)
	s.renew = time.Now().Add(wait)
	return wait
}
