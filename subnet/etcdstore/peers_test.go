package etcdstore

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet"
)

// script plays changes on peers and says what the host is told: +key, -key.
type script struct {
	*peers
	now time.Time
}

func newScript(n int) *script {
	s := &script{newPeers(time.Minute), time.Unix(0, 0)}
	for i := range n {
		s.put(fmt.Sprintf("p%02d", i), &subnet.Record{ModRevision: 1})
	}
	s.take()
	return s
}

func (s *script) told() string {
	var lines []string
	for key, r := range s.take() {
		if r == nil {
			lines = append(lines, "-"+key)
		} else {
			lines = append(lines, "+"+key)
		}
	}
	slices.Sort(lines)
	return fmt.Sprint(lines)
}

func (s *script) after(d time.Duration) *script {
	s.now = s.now.Add(d)
	return s
}

func keysOf(from, to int) (keys []string) {
	for i := from; i < to; i++ {
		keys = append(keys, fmt.Sprintf("p%02d", i))
	}
	return keys
}

func wantTold(t *testing.T, s *script, want string) {
	t.Helper()
	if got := s.told(); got != want {
		t.Errorf("told %s, want %s", got, want)
	}
}

func TestPeersLeaveOneByOne(t *testing.T) {
	t.Parallel()
	s := newScript(40)
	for i := range 40 {
		s.after(togetherWithin).leave(keysOf(i, i+1), false, s.now)
		wantTold(t, s, "[]")
		s.after(linger).expire(s.now)
		wantTold(t, s, fmt.Sprintf("[-p%02d]", i))
	}
}

func TestFewPeersMayLeaveTogether(t *testing.T) {
	t.Parallel()
	s := newScript(fewPeers)
	if n := s.leave(keysOf(0, fewPeers), false, s.now); n != 0 {
		t.Errorf("%d are held", n)
	}
	if given := s.after(linger).expire(s.now); given != 0 || len(s.known) != 0 {
		t.Errorf("%d are known, %d were given up", len(s.known), given)
	}
}

// A peer that is back within a moment was never gone.
func TestPeersLinger(t *testing.T) {
	t.Parallel()
	s := newScript(3)
	s.leave(keysOf(0, 2), false, s.now)
	if next := s.next(); next.Sub(s.now) != linger {
		t.Errorf("next in %v, want %v", next.Sub(s.now), linger)
	}
	if kept := slices.Sorted(slices.Values(s.kept())); !slices.Equal(kept, keysOf(0, 2)) {
		t.Errorf("%q are kept", kept)
	}
	s.after(linger-1).put("p00", &subnet.Record{ModRevision: 1})
	s.expire(s.now)
	wantTold(t, s, "[]")
	s.after(1).expire(s.now)
	wantTold(t, s, "[-p01]")
	s.put("p01", &subnet.Record{ModRevision: 1})
	wantTold(t, s, "[+p01]")
	if s.after(time.Hour).expire(s.now); len(s.known) != 3 {
		t.Errorf("known %v, want all", s.known)
	}
}

// A host that could not look after its peers for a while lets go of them all the same.
func TestPeersLeaveAHostThatStalls(t *testing.T) {
	t.Parallel()
	s := newScript(3)
	s.leave(keysOf(0, 1), false, s.now)
	s.after(2*togetherWithin).leave(keysOf(1, 2), false, s.now)
	s.after(linger).expire(s.now)
	wantTold(t, s, "[-p00 -p01]")
}

// When the own key vanishes with them, even few peers are held.
func TestPeersAreHeldInTrouble(t *testing.T) {
	t.Parallel()
	s := newScript(2)
	if n := s.leave(keysOf(0, 2), true, s.now); n != 2 {
		t.Errorf("%d are held", n)
	}
	s.after(30 * time.Second).expire(s.now)
	wantTold(t, s, "[]")
	s.after(30 * time.Second).expire(s.now)
	wantTold(t, s, "[-p00 -p01]")
}

func TestAQuarterMayLeaveTogether(t *testing.T) {
	t.Parallel()
	s := newScript(80)
	if n := s.leave(keysOf(0, 20), false, s.now); n != 0 {
		t.Errorf("%d are held", n)
	}
	if n := s.leave(keysOf(20, 21), false, s.now); n != 21 || len(s.known) != 80 {
		t.Errorf("%d are held", n)
	}
}

// What left before it was clear that many leave comes back.
func TestManyVanishInTurn(t *testing.T) {
	t.Parallel()
	s := newScript(12)
	s.leave(keysOf(0, 6), false, s.now)
	s.after(linger).expire(s.now)
	wantTold(t, s, "[-p00 -p01 -p02 -p03 -p04 -p05]")
	s.after(time.Second).leave(keysOf(6, 9), false, s.now)
	wantTold(t, s, "[+p00 +p01 +p02 +p03 +p04 +p05]")
	s.put("p00", &subnet.Record{ModRevision: 1})
	wantTold(t, s, "[]")
	s.put("p01", &subnet.Record{ModRevision: 2})
	wantTold(t, s, "[+p01]")
	s.after(time.Second).leave(keysOf(9, 11), false, s.now) // the trouble goes on
	s.told()
	if n := s.after(50 * time.Second).expire(s.now); n != 0 {
		t.Error("gave up before the time of grace was over")
	}
	if next := s.next(); next.Sub(s.now) != 9*time.Second {
		t.Errorf("next in %v", next.Sub(s.now))
	}
	s.extend(s.now)
	if n := s.after(59 * time.Second).expire(s.now); n != 0 {
		t.Error("the time of grace was not extended")
	}
	if n := s.after(time.Second).expire(s.now); n != 9 || !s.next().IsZero() {
		t.Errorf("gave up %d, next %v", n, s.next())
	}
	wantTold(t, s, "[-p02 -p03 -p04 -p05 -p06 -p07 -p08 -p09 -p10]")
}

func TestAbsentPeersAreHeld(t *testing.T) {
	t.Parallel()
	s := newScript(3)
	if n := s.absent(keysOf(0, 1), s.now); n != 1 {
		t.Errorf("%d are held", n)
	}
	if n := s.after(time.Second).absent(keysOf(0, 1), s.now); n != 0 {
		t.Errorf("%d more are held", n)
	}
	wantTold(t, s, "[]")
	s.drop("p00")
	s.drop("p00")
	wantTold(t, s, "[-p00]")
	if n := s.after(time.Hour).expire(s.now); n != 0 {
		t.Error("expired what was dropped")
	}
}

// TestSkipsAreToldOnce each for each reason.
func TestSkipsAreToldOnce(t *testing.T) {
	t.Parallel()
	var log counter
	s := skips{log.logger(), newMetrics(nil, &Member{}), map[string]string{}}
	for range 3 {
		for i := range 100 {
			s.note(fmt.Sprint("k", i), fmt.Errorf("junk %d", i))
		}
	}
	s.note("k1", nil)
	s.note("k0", errors.New("other junk"))
	if n := log.count("skipped a key"); n != 101 || len(s.known) != 99 {
		t.Errorf("%d lines, %d known", n, len(s.known))
	}
}

// A Member says nothing until it runs, and takes wishes all the same.
func TestIdleMember(t *testing.T) {
	t.Parallel()
	s := openStore(t, "192.0.2.1:1")
	m := s.Join(JoinConfig{HostID: "h1"})
	m.Advertise(Wish{Lease: advert("192.0.2.1")})
	m.Vacant(nil)
	u := m.Take()
	if u.Connected || u.Complete || u.Network != nil || u.Peers != nil || u.Own.State != Waiting {
		t.Errorf("update %+v", u)
	}
}
