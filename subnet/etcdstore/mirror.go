package etcdstore

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
	// maxDenied is the longest wait of who may not read: an operator has to let it in, or a certificate to be renewed.
	maxDenied = 15 * time.Second
	// silence is how long etcd may say nothing before it is asked whether it is there and still the same, and up to
	// where it has told everything. For more keys it is longer, so that all hosts together ask about 150 times a second
	// at most, of which each costs etcd 80 µs. A peer that is gone is noticed by the kernel after probeTime and
	// pingTimeout, 8 s, and one that takes everything and answers nothing by the ping after 13 s, whatever the number.
	silence       = 6 * time.Second
	maxSilence    = time.Minute
	silencePerKey = 6 * time.Millisecond
	// grace is for the answer to how far etcd has told everything. Etcd gives none while a watch lags behind.
	grace = time.Second
)

// errStale says that what is known does not fit what etcd says: list again.
var errStale = errors.New("etcd cannot be followed from where it was left")

// errMoved says that the connection may be from an address that the host does not have any more.
var errMoved = errors.New("the host has another address")

// keyRange is one key, or all keys that begin with it.
type keyRange struct {
	key    string
	prefix bool
}

func (r keyRange) options(more ...clientv3.OpOption) []clientv3.OpOption {
	if r.prefix {
		more = append(more, clientv3.WithPrefix())
	}
	return more
}

// mirror tells one reader what some ranges of keys hold, and each change of them, for as long as its Run runs. It does
// not know what the keys mean. What it tells of one range is complete and in order; one range may be ahead of another.
//
// It follows etcd at one endpoint at a time: then an answer on the connection says that the watch on it lives too.
type mirror struct {
	client *Client
	ranges []keyRange
	log    *slog.Logger
	told   chan any      // see the types below
	again  chan struct{} // capacity 1: connect anew

	// Below belongs to Run.
	position
	over     <-chan struct{} // closed when Run ends
	keys     int             // that etcd holds in the ranges, about
	least    time.Duration   // between two questions to etcd, for few keys
	most     time.Duration   // the same, for many
	patience atomic.Int64    // nanoseconds; bounds a request
	misses   int             // requests in a row that were not answered within patience
}

// What a mirror tells, in the order in which it comes: listing, pages, listed, linked, events, cut, linked, …
type (
	// listing begins a list: at its end all that was known before is out of date.
	listing struct{ revision int64 }
	// page is a part of a list, of one range; all of them are of the revision of the listing.
	page struct {
		in  int // the range
		kvs []*mvccpb.KeyValue
	}
	listed struct{}
	// linked says that etcd is followed, and over which connection.
	linked struct{ *conn }
	// events are changes of one range, and revision is that of the last.
	events struct {
		in       int
		revision int64
		all      []*clientv3.Event
	}
	// cut says that etcd is not followed any more, or still not; what is known stays true of the past.
	cut struct{ err error }
)

// conn is a connection over which etcd is followed.
type conn struct {
	*clientv3.Client
	patience *atomic.Int64
	fail     func(error) // ends the following: a request failed
}

// bound is the context of a request.
func (c *conn) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Duration(c.patience.Load()))
}

// newMirror returns a mirror that does nothing before Run.
func newMirror(c *Client, log *slog.Logger, ranges ...keyRange) *mirror {
	m := &mirror{
		client: c, ranges: ranges, log: log, told: make(chan any, 1), again: make(chan struct{}, 1),
		position: position{known: make([]known, len(ranges))}, least: silence, most: maxSilence,
	}
	m.patience.Store(int64(requestTimeout))
	return m
}

// reconnect has the mirror connect anew, for the host's address may be another.
func (m *mirror) reconnect() { signal(m.again) }

// tell waits until the reader takes the news, or Run ends. That a connection fails must not swallow any: what is told
// counts as known.
func (m *mirror) tell(news any) {
	select {
	case m.told <- news:
	case <-m.over:
	}
}

// Run follows etcd until ctx ends; then it returns nil. What fails it tries again.
func (m *mirror) Run(ctx context.Context) error {
	m.over = ctx.Done()
	var wait backoff
	for i := 0; ; i++ {
		endpoints, begun := m.client.current(), time.Now()
		at := endpoints[i%len(endpoints)]
		followed, err := m.followOne(ctx, at)
		if ctx.Err() != nil {
			return nil
		}
		if followed && time.Since(begun) > maxBackoff {
			wait = 0 // a cut is mended in no time, as a rule; but etcd may be there, and never do what it is asked
		}
		m.tell(cut{err})
		m.answered(err, maxPatience)
		if errors.Is(err, errStale) || errors.Is(err, errRetired) || errors.Is(err, errMoved) {
			wait = 0
		}
		most := maxBackoff
		if denied(err) {
			most = maxDenied
		}
		sleep(ctx, wait.next(minBackoff, most))
	}
}

// answered takes note of how a request ended that took so long.
func (m *mirror) answered(err error, took time.Duration) {
	switch {
	case unanswered(err): // by all of them in turn: be they as slow as they like
		m.misses++
	case err == nil && took < requestTimeout:
		m.misses = 0
	}
	m.patience.Store(int64(min(maxPatience, requestTimeout<<min(10, m.misses/len(m.client.current())))))
}

// followOne follows an endpoint until that fails, the endpoint is retired, or ctx ends.
func (m *mirror) followOne(ctx context.Context, e endpoint) (followed bool, err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	defer context.AfterFunc(e.retired, func() { fail(errRetired) })()
	client, err := m.client.dial(ctx, e.url)
	if err != nil {
		return false, err
	}
	defer client.Close()
	c := &conn{Client: client, patience: &m.patience, fail: fail}
	err = m.catchUp(ctx, c)
	if err == nil {
		followed, err = m.follow(ctx, c)
	}
	if why := context.Cause(ctx); why != nil {
		err = why
	}
	return followed, err
}

// catchUp makes what is known fit etcd: nothing if the watches can go on where they ended, else by listing anew, unless it
// is another etcd beside the one that is known.
func (m *mirror) catchUp(ctx context.Context, c *conn) error {
	var stale error
	if m.cluster != 0 {
		took, err := m.position.verify(ctx, c, maxMarks)
		m.answered(err, took)
		if stale = err; !errors.Is(err, errStale) {
			return err
		}
	}
	if err := m.client.admit(ctx, c); err != nil {
		return err
	}
	if stale != nil {
		m.log.Info("listing the leases anew", "why", stale)
	}
	return m.list(ctx, c)
}

// list tells everything anew, page by page; while one is looked at, etcd is asked for the next.
func (m *mirror) list(ctx context.Context, c *conn) error {
	m.position, m.keys = position{known: make([]known, len(m.ranges))}, 0
	var revision int64
	for in, r := range m.ranges {
		err := readRange(ctx, c.Client, r, revision, func(h *etcdserverpb.ResponseHeader, kvs []*mvccpb.KeyValue) {
			if revision == 0 { // of the first page: the others must fit it
				revision, m.cluster, m.marks = h.Revision, h.ClusterId, []mark{{key: r.key, gone: true}}
				m.tell(listing{revision})
			}
			for _, kv := range kvs {
				m.see(in, kv, false)
			}
			m.keys += len(kvs)
			m.tell(page{in, kvs})
		})
		if err != nil {
			m.cluster = 0 // what was told is no list
			return err
		}
		m.known[in].revision = revision
	}
	m.tell(listed{})
	return nil
}
