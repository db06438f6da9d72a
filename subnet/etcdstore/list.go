package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"net/netip"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	client, err := s.client.connection(ctx)
	if err != nil {
		return nil, 0, err
	}
	set, prefix, revision := subnet.NewSet(n), s.leasePrefix(), int64(0)
	err = readRange(ctx, client, keyRange{prefix, true}, 0, func(h *etcdserverpb.ResponseHeader, kvs []*mvccpb.KeyValue) {
		revision = cmp.Or(revision, h.Revision)
		set.Load(keyValues(prefix, kvs))
	})
	return set, revision, err
}

func keyValues(prefix string, kvs []*mvccpb.KeyValue) []subnet.KeyValue {
	all := make([]subnet.KeyValue, len(kvs))
	for i, kv := range kvs {
		all[i] = keyValue(prefix, kv)
	}
	return all
}

func keyValue(prefix string, kv *mvccpb.KeyValue) subnet.KeyValue {
	return subnet.KeyValue{
		Key: strings.TrimPrefix(string(kv.Key), prefix), Value: kv.Value,
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, LeaseID: kv.Lease,
	}
}

// readRange yields all keys of a range as they were at one revision, page by page, with the header of the answer; 0: now.
func readRange(ctx context.Context, c *clientv3.Client, r keyRange, revision int64, yield func(*etcdserverpb.ResponseHeader, []*mvccpb.KeyValue)) error {
	limit := int64(pageSize)
	opts := func() []clientv3.OpOption {
		o := []clientv3.OpOption{clientv3.WithLimit(limit), clientv3.WithRev(revision)}
		if r.prefix {
			o = append(o, clientv3.WithRange(clientv3.GetPrefixRangeEnd(r.key)))
		}
		return o
	}
	for from := r.key; ; {
		page, cancel := context.WithTimeout(ctx, pageTimeout)
		got, err := c.Get(page, from, opts()...)
		cancel()
		if status.Code(err) == codes.ResourceExhausted && limit > 1 {
			limit /= 8 // somebody put values of a size that no lease has
			continue
		}
		if err != nil {
			return describe(err, c.Endpoints()...)
		}
		revision = cmp.Or(revision, got.Header.Revision) // the other pages must fit the first
		yield(got.Header, got.Kvs)
		if !got.More {
			return nil
		}
		from = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
	}
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
		urls, err := s.client.members(ctx, s.client.Endpoints())
		if err != nil {
			yield(Event{}, err)
			return
		}
		client, err := s.client.dial(ctx, urls...)
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

// Choose tells which subnets a host would claim if it joined now, and what leases there are. It claims nothing.
func (s *Store) Choose(ctx context.Context, cfg JoinConfig, wish subnet.Lease) ([]netip.Prefix, Listing, error) {
	raw, _, err := s.Network(ctx)
	if err != nil {
		return nil, Listing{}, err
	}
	network, err := subnet.ParseNetwork(raw)
	if err != nil {
		return nil, Listing{}, err
	}
	set, revision, err := s.list(ctx, network)
	if err != nil {
		return nil, Listing{}, err
	}
	wish.HostID, wish.Host = cfg.HostID, cfg.Host
	c := claimer{wish: wish, past: past{cfg.Previous, cfg.Last.Last, cfg.Last.SameBoot, cfg.Last.NIC}}
	f := facts{
		network: network, set: set, mine: make(map[string]*subnet.Record), others: make(map[string]string),
		held: func([]netip.Prefix) bool { return false },
	}
	for key, r := range set.All() {
		if ownerOf(r.Lease, wish) == ours {
			f.mine[key] = r
		} else if sharesAddress(r.Lease, wish) {
			f.others[key] = ""
		}
	}
	if d, ok := c.choose(f); !ok {
		err = errors.New(d.reason)
	}
	return c.place, newListing(set, revision), err
}
