package etcdembed

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/overlayd/overlayd/subnet/who"
)

// errNotLoaded is the answer to hosts before it is known who is of the network.
var errNotLoaded = status.Error(codes.Unavailable, "etcd is starting: it does not know yet which hosts are of the network")

// admitted are the hosts of the network by host id: those that have a key below overlayd/hosts/.
type admitted struct {
	mu     sync.RWMutex
	loaded bool
	hosts  map[string]membership
}

// membership ends when a host is removed.
type membership struct {
	context.Context
	end context.CancelCauseFunc
}

// membership is that of a host; of one whose certificate names no host id it never ends.
func (a *admitted) membership(w who.Who) (context.Context, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	m, ok := a.hosts[w.Host]
	switch {
	case !a.loaded:
		return nil, errNotLoaded
	case w.Host == "":
		return context.Background(), nil
	case !ok:
		return nil, removed(w.String())
	}
	return m, nil
}

// knows says whether a host id is that of a host of the network.
func (a *admitted) knows(id string) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	_, ok := a.hosts[id]
	return ok
}

func removed(who string) refusal {
	return refusal{refusedHost, who + " may do nothing: it was removed from the network, or never joined: overlayctl join lets it in"}
}

// set makes the hosts anew.
func (a *admitted) set(ids []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.hosts
	a.hosts, a.loaded = map[string]membership{}, true
	for _, id := range ids {
		if _, ok := old[id]; ok {
			a.hosts[id] = old[id]
			continue
		}
		a.hosts[id] = newMembership()
	}
	for id, m := range old {
		if _, ok := a.hosts[id]; !ok {
			m.end(removed("host " + id))
		}
	}
}

// change takes in that a host has come, or gone.
func (a *admitted) change(id string, gone bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.hosts[id]
	switch {
	case gone && ok:
		delete(a.hosts, id)
		m.end(removed("host " + id))
	case !gone && !ok:
		a.hosts[id] = newMembership()
	}
}

func newMembership() membership {
	ctx, end := context.WithCancelCause(context.Background())
	return membership{ctx, end}
}

// hostsKey is the key below which each host of the network has one, named after its host id.
func (g *gate) hostsKey() string { return g.prefix + "overlayd/hosts/" }

// follow keeps the hosts of the network as this member of etcd has them, until ctx ends.
func (g *gate) follow(ctx context.Context, kv mvcc.WatchableKV) {
	for ctx.Err() == nil {
		if err := g.followOnce(ctx, kv); err != nil && ctx.Err() == nil {
			g.log.Warn("reading the hosts of the network anew", "err", err)
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// followOnce goes on until the watch ends, which etcd's compaction may bring about.
func (g *gate) followOnce(ctx context.Context, kv mvcc.WatchableKV) error {
	watch := kv.NewWatchStream()
	defer watch.Close()
	from, to := []byte(g.hostsKey()), []byte(after(g.hostsKey()))
	there, err := kv.Range(ctx, from, to, mvcc.RangeOptions{})
	if err != nil {
		return err
	}
	if _, err := watch.Watch(ctx, 0, from, to, there.Rev+1); err != nil {
		return err
	}
	var ids []string
	for _, kv := range there.KVs {
		ids = append(ids, strings.TrimPrefix(string(kv.Key), g.hostsKey()))
	}
	g.hosts.set(ids)
	for {
		select {
		case <-ctx.Done():
			return nil
		case news, open := <-watch.Chan():
			if !open || news.CompactRevision != 0 {
				return fmt.Errorf("the watch ended, compacted at revision %d", news.CompactRevision)
			}
			for _, e := range news.Events {
				g.hosts.change(strings.TrimPrefix(string(e.Kv.Key), g.hostsKey()), e.Type == mvccpb.Event_DELETE)
			}
		}
	}
}
