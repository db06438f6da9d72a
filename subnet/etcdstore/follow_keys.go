package etcdstore

import (
	"context"
	"errors"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// KeyValue is a key of ours, below <prefix>/overlayd/.
type KeyValue struct {
	Key         string // without that
	Value       []byte
	ModRevision int64
	LeaseID     int64 // etcd's lease; 0: the key does not expire
}

// News is what somebody who follows keys hears. The empty one says that etcd is followed again.
type News struct {
	Listed  bool       // Put is all that there is, at one revision; else what changed
	Put     []KeyValue // in the order of the changes; of a list, in that of the keys, range by range
	Deleted []KeyValue // without values
	Err     error      // etcd cannot be followed now; what was told stays true of the past, and nothing else is told here
}

// FollowKeys tells all keys below <prefix>/overlayd/ that begin with one of the ranges, and then what changes, in order, until
// ctx ends. It has a connection of its own: what goes wrong here, for want of rights or for what the keys hold, does not touch
// those who follow leases. What fails is tried again.
func (s *Store) FollowKeys(ctx context.Context, tell func(News), ranges ...string) {
	base := s.prefix + "/overlayd/"
	all := make([]keyRange, len(ranges))
	for i, r := range ranges {
		all[i] = keyRange{base + r, true}
	}
	m := newMirror(s.client, s.log, all...)
	m.least = maxSilence // it is the leases' part to find out soon that etcd is gone
	ended := make(chan struct{})
	go func() { defer close(ended); _ = m.Run(ctx) }() // it never fails
	defer func() { <-ended }()
	var list News
	for {
		select {
		case <-ctx.Done():
			return
		case report := <-m.told:
			switch r := report.(type) {
			case listing:
				list = News{Listed: true}
			case page:
				for _, kv := range r.kvs {
					list.Put = append(list.Put, keyOfOurs(base, kv))
				}
			case listed:
				tell(list)
				list = News{}
			case events:
				tell(changes(base, r.all))
			case linked:
				tell(News{})
			case cut:
				tell(News{Err: r.err})
			}
		}
	}
}

func keyOfOurs(base string, kv *mvccpb.KeyValue) KeyValue {
	return KeyValue{Key: strings.TrimPrefix(string(kv.Key), base), Value: kv.Value, ModRevision: kv.ModRevision, LeaseID: kv.Lease}
}

// changes are what is left of events if of each key only the last counts.
func changes(base string, all []*clientv3.Event) (n News) {
	last := map[string]int{}
	for i, ev := range all {
		last[string(ev.Kv.Key)] = i
	}
	for i, ev := range all {
		switch {
		case last[string(ev.Kv.Key)] != i:
		case ev.Type == clientv3.EventTypeDelete:
			n.Deleted = append(n.Deleted, keyOfOurs(base, ev.Kv))
		default:
			n.Put = append(n.Put, keyOfOurs(base, ev.Kv))
		}
	}
	return n
}

// Denied says whether an error is that etcd does not permit it.
func Denied(err error) bool {
	f, ok := errors.AsType[failure](err)
	return ok && denied(f.err) || denied(err)
}
