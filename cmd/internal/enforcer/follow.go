package enforcer

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

const (
	// mostRanges of namespaces are followed each by itself; of more, all endpoints are.
	mostRanges = 32
	// lingers is how long namespaces are followed that no policy of this host's reaches any more.
	lingers = time.Minute
)

// peerNews is news of one following.
type peerNews struct {
	of int
	etcdstore.News
}

// following is of other hosts' endpoints, in the namespaces that policies reach from here, or that containers ask for by name.
type following struct {
	number int // of those that were begun
	ranges []string
	listed bool
	since  time.Time // when it began
	until  time.Time // when it is narrowed, if it is too wide; zero: it is not
	end    context.CancelFunc
}

func (f *following) active() bool { return f.end != nil }

func (f *following) stop() {
	if f.end != nil {
		f.end()
		f.end = nil
	}
}

// follow follows the endpoints that are reached now. More are at once, less after a while.
func (e *Enforcer) follow(ctx context.Context, now time.Time) {
	f := &e.following
	want := e.reached()
	if len(want) == 0 && !e.compiler.Enforcing() {
		f.until = now
	}
	switch {
	case slices.Equal(want, f.ranges):
		f.until = time.Time{}
		f.listed = f.listed || len(want) == 0
		return
	case covers(f.ranges, want) && f.until.IsZero():
		f.until = now.Add(lingers)
		return
	case covers(f.ranges, want) && now.Before(f.until):
		return
	}
	f.stop()
	e.cfg.Names.Known(namespacesOf(slices.DeleteFunc(slices.Clone(want), func(r string) bool {
		return !f.listed || !covers(f.ranges, []string{r})
	})))
	*f = following{number: f.number + 1, ranges: want, since: now, listed: len(want) == 0}
	if len(want) == 0 {
		e.peers.hear(etcdstore.News{Listed: true}, e.hostID())
		e.memory.dirty = true
		return
	}
	ctx, f.end = context.WithCancel(ctx)
	number := f.number
	go e.cfg.Store.FollowKeys(ctx, func(n etcdstore.News) {
		select {
		case e.peerNews <- peerNews{number, n}:
		case <-ctx.Done():
		}
	}, want...)
}

// reached are the ranges of the endpoints that this host's policies reach, and that its containers ask for, sorted.
func (e *Enforcer) reached() (ranges []string) {
	all, namespaces := e.cfg.Names.Wanted()
	if e.compiler.Enforcing() && e.compiler.Isolated() > 0 {
		reachAll, reach := e.compiler.Reach()
		all, namespaces = all || reachAll, slices.Compact(slices.Sorted(slices.Values(slices.Concat(namespaces, reach))))
	}
	if all || len(namespaces) > mostRanges {
		return []string{etcdstore.EndpointDir}
	}
	for _, ns := range namespaces {
		ranges = append(ranges, etcdstore.EndpointDir+ns+"/")
	}
	return ranges
}

// covers says whether all of some ranges are in others.
func covers(have, want []string) bool {
	return !slices.ContainsFunc(want, func(w string) bool {
		return !slices.ContainsFunc(have, func(h string) bool { return strings.HasPrefix(w, h) })
	})
}

// hearPeers takes in news of other hosts' endpoints.
func (e *Enforcer) hearPeers(n peerNews) {
	if n.of != e.following.number || n.Err != nil {
		return
	}
	e.following.listed = e.following.listed || n.Listed
	e.peers.hear(n.News, e.hostID())
	e.memory.dirty = true
	if n.Listed {
		e.cfg.Names.Known(namespacesOf(e.following.ranges))
	}
}

// namespacesOf are those that ranges are of; an empty one stands for all.
func namespacesOf(ranges []string) (all []string) {
	for _, r := range ranges {
		all = append(all, strings.TrimSuffix(strings.TrimPrefix(r, etcdstore.EndpointDir), "/"))
	}
	return all
}

func (e *Enforcer) hostID() string {
	if e.host == nil {
		return ""
	}
	return e.host.HostID
}
