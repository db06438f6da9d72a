package etcdstore

import (
	"context"
	"errors"
	"iter"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/subnet"
)

// pageSize is how many keys one request asks for.
const pageSize = 10_000

// Listing is all that etcd holds below subnets/ at one revision.
type Listing struct {
	Revision int64
	Records  []subnet.Record // that count, by subnet
	Skipped  []Skipped       // that do not, by key
}

// Skipped is a key that is no lease of the network.
type Skipped struct {
	Key string // without the prefix
	Err error
}

// Leases lists the leases. The error wraps ErrNoNetwork if there is no network that they could belong to.
func (s *Store) Leases(ctx context.Context) (Listing, error) {
	raw, _, err := s.Network(ctx)
	if err != nil {
		return Listing{}, err
	}
	network, err := subnet.ParseNetwork(raw)
	if err != nil {
		return Listing{}, err
	}
	set, revision, err := s.list(ctx, network)
	if err != nil {
		return Listing{}, err
	}
	return newListing(set, revision), nil
}

func newListing(set *subnet.Set, revision int64) Listing {
	l := Listing{Revision: revision}
	for _, r := range set.All() {
		l.Records = append(l.Records, *r)
	}
	for key, err := range set.Rejected() {
		l.Skipped = append(l.Skipped, Skipped{key, err})
	}
	return l
}

func (s *Store) list(ctx context.Context, n subnet.Network) (*subnet.Set, int64, error) {
	client, err := s.client.connection()
	if err != nil {
		return nil, 0, err
	}
	set := subnet.NewSet(n)
	revision, err := readLeases(ctx, client, s.leasePrefix(), 0, set.Load)
	return set, revision, err
}

func keyValue(key string, kv *mvccpb.KeyValue) subnet.KeyValue {
	return subnet.KeyValue{Key: key, Value: kv.Value, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, LeaseID: kv.Lease}
}

// readLeases yields all keys below prefix, without it, as they were at one revision, page by page; 0: now. It returns the
// revision. While one page is looked at, etcd is asked for the next.
func readLeases(ctx context.Context, c *clientv3.Client, prefix string, revision int64, yield func([]subnet.KeyValue)) (int64, error) {
	g, ctx := errgroup.WithContext(ctx)
	pages := make(chan []subnet.KeyValue)
	g.Go(func() error {
		defer close(pages)
		end := clientv3.GetPrefixRangeEnd(prefix)
		for from := prefix; ; {
			page, cancel := context.WithTimeout(ctx, pageTimeout)
			got, err := c.Get(page, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
			cancel()
			if err != nil {
				return describe(err, c.Endpoints()...)
			}
			if revision == 0 {
				revision = got.Header.Revision // of the first page: the others must fit it
			}
			kvs := make([]subnet.KeyValue, len(got.Kvs))
			for i, kv := range got.Kvs {
				kvs[i] = keyValue(strings.TrimPrefix(string(kv.Key), prefix), kv)
			}
			pages <- kvs
			if !got.More {
				return nil
			}
			from = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
		}
	})
	for page := range pages {
		yield(page)
	}
	return revision, g.Wait()
}

// Event is a change of one key below subnets/.
type Event struct {
	Key      string         // without the prefix
	Revision int64          // of the change
	Record   *subnet.Record // nil: the key is gone, or is no lease
	Err      error          // why it is no lease
}

// Watch yields the changes from a revision on, usually one more than that of a Listing, until ctx ends. It ends with
// an error if etcd goes away or has forgotten the revision: list again then.
func (s *Store) Watch(ctx context.Context, from int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		client, err := s.client.dial(ctx, s.client.current().urls()...)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer client.Close()
		prefix := s.leasePrefix()
		for resp := range client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
			if err := resp.Err(); err != nil {
				yield(Event{}, describe(err, client.Endpoints()...))
				return
			}
			for _, ev := range resp.Events {
				if !yield(event(ev, prefix), nil) {
					return
				}
			}
		}
		if ctx.Err() == nil {
			yield(Event{}, errors.New("etcd ended the watch"))
		}
	}
}

func event(ev *clientv3.Event, prefix string) Event {
	kv := ev.Kv
	e := Event{Key: strings.TrimPrefix(string(kv.Key), prefix), Revision: kv.ModRevision}
	if ev.Type == clientv3.EventTypeDelete {
		return e
	}
	lease, err := subnet.ParseLease(e.Key, kv.Value)
	if err != nil {
		e.Err = err
		return e
	}
	e.Record = &subnet.Record{Lease: lease, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, LeaseID: kv.Lease}
	return e
}
