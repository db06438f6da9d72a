package etcdstore

import (
	"fmt"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet"
)

// What hosts do that did the same in the same moment: they must not do it together again.

// spreadOf is between the first and the last of what many hosts draw.
func spreadOf(draw func() time.Duration) (least, most time.Duration) {
	least = time.Hour * 1000
	for range 1000 {
		d := draw()
		least, most = min(least, d), max(most, d)
	}
	return least, most
}

func TestRenewalsAreSpread(t *testing.T) {
	t.Parallel()
	for _, ttl := range []int64{10, 24 * 3600} {
		at := time.Now()
		least, most := spreadOf(func() time.Duration {
			s := newSession(time.Duration(ttl) * time.Second)
			s.renewed(at, 1, ttl, true)
			return s.renew.Sub(at)
		})
		latest := min(time.Duration(ttl)*time.Second/3, renewAtMost)
		if most > latest || least < latest/2 || most-least < latest/4 {
			t.Errorf("TTL %d s: renewed after %v to %v, want within %v and spread", ttl, least, most, latest)
		}
	}
}

func TestQuestionsAreSpread(t *testing.T) {
	t.Parallel()
	for keys, latest := range map[int]time.Duration{10: silence, 5000: 30 * time.Second, 100_000: maxSilence} {
		m := mirror{keys: keys, least: silence, most: maxSilence}
		if least, most := spreadOf(m.pause); most > latest || least < latest/2 || most-least < latest/5 {
			t.Errorf("%d keys: asked after %v to %v, want within %v and spread", keys, least, most, latest)
		}
	}
}

func TestRetriesGrowAndAreSpread(t *testing.T) {
	t.Parallel()
	const first, last = time.Second, 8 * time.Second
	for n, want := range []time.Duration{1, 2, 4, 8, 8, 8} {
		latest := want * time.Second
		least, most := spreadOf(func() (d time.Duration) {
			var b backoff
			for range n + 1 {
				d = b.next(first, last)
			}
			return d
		})
		if most > latest || least < latest/2 || most-least < latest/4 {
			t.Errorf("failure %d: waits %v to %v, want %v at most and spread", n+1, least, most, latest)
		}
	}
}

// A change that all hosts make at once is spread over the time that etcd needs to tell all of it; one that peers wait
// for, another address, is made at once.
func TestChangesOfAllAreSpread(t *testing.T) {
	t.Parallel()
	const peers = 600
	changed := func(l subnet.Lease) func() time.Duration {
		m := openStore(t, "http://127.0.0.1:1").Join(JoinConfig{HostID: "h1"})
		for i := range peers {
			m.view.peers.known[fmt.Sprint(i)] = &subnet.Record{}
		}
		m.Advertise(Wish{Lease: advert("192.0.2.1")})
		m.hearWishes(time.Now())
		first := m.claimer.wish
		m.Advertise(Wish{Lease: l})
		return func() time.Duration {
			now := time.Now()
			m.claimer.wish = first
			m.hearWishes(now)
			return m.due[dueChange].Sub(now)
		}
	}
	vni := advert("192.0.2.1")
	vni.Endpoints[0].Data = []byte(`{"VNI":2}`)
	window := spread * (peers + 1)
	if least, most := spreadOf(changed(vni)); most > window || least > window/10 || most < window*9/10 {
		t.Errorf("another VNI is written after %v to %v, want up to %v", least, most, window)
	}
	s := newScene(t, network)
	s.do(true)
	s.wish.Endpoints = advert("192.0.2.99", "2001:db8::99").Endpoints
	if d := s.decide(); d.write == nil || d.write.calm {
		t.Errorf("another address: %s", d.text())
	}
}
