package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// answer is one of the watch of a range.
type answer struct {
	in int
	clientv3.WatchResponse
}

// follow watches the ranges from where they are known, until that fails.
func (m *mirror) follow(ctx context.Context, c *conn) (followed bool, err error) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	answers := make(chan answer)
	m.resume()
	// A stream that is never answered must not hold up the next attempt. Watches are begun one after the other.
	patience := time.AfterFunc(time.Duration(m.patience.Load())*time.Duration(len(m.ranges)), cancel)
	for in, r := range m.ranges {
		watch := c.Watch(ctx, r.key, r.options(clientv3.WithRev(m.known[in].revision+1), clientv3.WithProgressNotify(), clientv3.WithFragment())...)
		readers.Go(func() {
			for resp := range watch {
				select {
				case answers <- answer{in, resp}:
				case <-ctx.Done():
				}
			}
			cancel()
		})
	}
	if !patience.Stop() {
		return false, describe(context.DeadlineExceeded, c.Endpoints()...)
	}
	m.tell(linked{c})
	return true, m.listen(ctx, c, answers)
}

// listen handles what the watches say, and asks etcd now and then up to where it has told everything. If nothing comes
// then, it verifies that etcd is there; one that says something meanwhile is slow, and not gone.
func (m *mirror) listen(ctx context.Context, c *conn, answers <-chan answer) error {
	r := rhythm{heard: time.Now(), asked: time.Now(), pause: m.pause()}
	verified := make(chan error, 1)
	var verifier sync.WaitGroup
	defer verifier.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(r.pause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("etcd at %s ended the watch", c.Endpoints()[0])
		case <-m.again:
			return errMoved
		case a := <-answers:
			if err := m.take(c, a.in, a.WatchResponse); err != nil {
				return err
			}
			r.heard = time.Now()
			continue
		case err := <-verified:
			m.answered(err, time.Since(r.verifying))
			if slow := unanswered(err) && r.heard.After(r.verifying); err != nil && !slow {
				return err
			}
			r.heard, r.verifying = time.Now(), time.Time{}
		case <-timer.C:
		}
		now := time.Now()
		if r.silent(now) {
			r.verifying = now
			known := m.position.clone()
			verifier.Go(func() { _, err := known.verify(ctx, c, 1); verified <- err })
		}
		if now.Sub(r.asked) >= r.pause {
			if err := c.RequestProgress(ctx); err != nil {
				return describe(err, c.Endpoints()...)
			}
			r.asked, r.pause = now, m.pause()
		}
		timer.Reset(r.next(now))
	}
}

// rhythm is in which etcd is asked.
type rhythm struct {
	heard     time.Time // of anything
	asked     time.Time // how far it has told everything
	verifying time.Time // since when it is being verified; zero: it is not
	pause     time.Duration
}

// silent says whether etcd is to be verified: it has not answered.
func (r rhythm) silent(now time.Time) bool {
	return r.verifying.IsZero() && r.heard.Before(r.asked) && now.Sub(r.asked) >= grace
}

// next is how long there is nothing to ask, once what was to be asked now is.
func (r rhythm) next(now time.Time) time.Duration {
	if r.verifying.IsZero() && r.heard.Before(r.asked) {
		return r.asked.Add(min(grace, r.pause)).Sub(now)
	}
	return r.asked.Add(r.pause).Sub(now)
}

// pause is until etcd is asked again, spread so that hosts that started together do not ask together.
func (m *mirror) pause() time.Duration {
	most := min(m.most, max(m.least, time.Duration(m.keys)*silencePerKey))
	return most - rand.N(most/4)
}

// take handles one answer of a watch.
func (m *mirror) take(c *conn, in int, resp clientv3.WatchResponse) error {
	if err := resp.Err(); err != nil {
		switch {
		case errors.Is(err, rpctypes.ErrCompacted):
			m.cluster = 0
			return fmt.Errorf("%w: it has forgotten revision %d", errStale, m.known[in].revision)
		case status.Code(err) == codes.ResourceExhausted: // a list can be had in smaller parts
			m.cluster = 0
			return fmt.Errorf("%w: %w", errStale, err)
		}
		return describe(err, c.Endpoints()...)
	}
	if err := m.check(resp.Header); err != nil {
		return err
	}
	if resp.IsProgressNotify() {
		m.progress(in, resp.Header.Revision)
		return nil
	}
	if len(resp.Events) == 0 {
		return nil
	}
	for _, ev := range resp.Events {
		m.see(in, ev.Kv, ev.Type == clientv3.EventTypeDelete)
		switch {
		case ev.Type == clientv3.EventTypeDelete:
			m.keys--
		case ev.IsCreate():
			m.keys++
		}
	}
	// Not that of the header: a watch that lags behind gets the past in parts, each with the present revision.
	last := resp.Events[len(resp.Events)-1].Kv.ModRevision
	m.known[in].revision = last
	m.tell(events{in, last, resp.Events})
	return nil
}
