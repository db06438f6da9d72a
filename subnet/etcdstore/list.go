package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"net/netip"
	"strings"
	"sync"
	"time"

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
	there, err := s.read(ctx)
	if err != nil {
		return Listing{}, err
	}
	return newListing(there.set, there.revision), nil
}

// contents are what etcd holds of a network.
type contents struct {
	network        subnet.Network
	configRevision int64 // at which that was put
	set            *subnet.Set
	revision       int64 // of set
}

func (s *Store) read(ctx context.Context) (c contents, err error) {
	raw, configRevision, err := s.Network(ctx)
	if err != nil {
		return contents{}, err
	}
	network, err := subnet.ParseNetwork(raw)
	if err != nil {
		return contents{}, err
	}
	client, err := s.client.connection(ctx)
	if err != nil {
		return contents{}, err
	}
	c = contents{network: network, configRevision: configRevision, set: subnet.NewSet(network)}
	prefix := s.leasePrefix()
	err = readRange(ctx, client, keyRange{prefix, true}, 0, func(header *etcdserverpb.ResponseHeader, kvs []*mvccpb.KeyValue) {
		c.revision = cmp.Or(c.revision, header.Revision)
		c.set.Load(keyValues(prefix, kvs))
	})
	return c, err
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

// Follow yields the leases as they are now, and again after each change, until ctx ends, as a Member follows them: a network
// config that no host can follow leaves the one before it in force. An error says that etcd is away, or has no network;
// what is missed meanwhile is in the next Listing.
func (s *Store) Follow(ctx context.Context) iter.Seq2[Listing, error] {
	return func(yield func(Listing, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		m, v, nobody := s.mirror(), s.view(JoinConfig{}, newMetrics(nil, new(Member))), new(claimer)
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		running.Go(func() { _ = m.Run(ctx) }) // it never fails
		for wanted := true; wanted; {
			select {
			case <-ctx.Done():
				return
			case news := <-m.told:
				v.take(news, nobody, time.Now())
				switch n := news.(type) {
				case cut:
					wanted = yield(Listing{}, n.err)
				case listed, events:
					if v.config.network == nil {
						wanted = yield(Listing{}, v.config.err)
					} else {
						wanted = yield(newListing(v.set, v.revision), nil)
					}
				}
			}
		}
	}
}

// Choose tells which subnets a host would claim if it joined now, and what leases there are. It claims nothing.
func (s *Store) Choose(ctx context.Context, cfg JoinConfig, wish subnet.Lease) ([]netip.Prefix, Listing, error) {
	there, err := s.read(ctx)
	if err != nil {
		return nil, Listing{}, err
	}
	wish.HostID, wish.Host = cfg.HostID, cfg.Host
	c := claimer{wish: wish, past: cfg.past()}
	f := facts{
		network: there.network, set: there.set, mine: make(map[string]*subnet.Record), others: make(map[string]string),
		held: func([]netip.Prefix) bool { return false },
	}
	for key, r := range there.set.All() {
		if ownerOf(r.Lease, wish) == ours {
			f.mine[key] = r
		} else if sharesAddress(r.Lease, wish) {
			f.others[key] = ""
		}
	}
	if d, ok := c.choose(f); !ok {
		err = errors.New(d.reason)
	}
	return c.place, newListing(there.set, there.revision), err
}
