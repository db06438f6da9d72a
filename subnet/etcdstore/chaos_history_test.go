package etcdstore

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/overlayd/overlayd/subnet"
)

// history is all that ever happened to the keys below subnets/, and judges it. A restore of a backup forks it: what
// came after the backup is forgotten by etcd, and remembered by hosts. In each life of etcd, at each revision:
//
//   - no two hosts believe to have leases that overlap, be it under one key or two: who puts a key over an older one
//     gives it back without having believed in it;
//   - no host writes over a lease of another;
//   - no host puts what is there already: renewals are no events.
//
// And a host that says that it holds a lease did so, in one life, up to the revision that it knows.
type history struct {
	mu      sync.Mutex
	lives   []*life
	faults  []string
	beliefs []belief
}

// life is etcd between two restores, from revision 1 on.
type life struct {
	seen    int64               // the revision up to which it is known
	now     map[string]moment   // by key; only those that are there
	moments map[string][]moment // by key, what happened, in order
}

// moment is one state of a key.
type moment struct {
	revision int64
	owner    string // HostID, or what else the value is; empty: the key is gone
	value    string
	leaseID  int64
	over     []string // keys of other hosts that were there and that this one overlaps
}

// What a value can be, other than a HostID.
const (
	junkValue    = "(junk)"
	flannelLease = "(flannel)"
)

// belief is a host's word that it holds a lease.
type belief struct {
	host, key       string
	modRevision, at int64 // at: the revision that the host knew
}

func newHistory() *history {
	return &history{lives: []*life{{now: map[string]moment{}, moments: map[string][]moment{}}}}
}

func (h *history) present() *life { return h.lives[len(h.lives)-1] }

// seen is up to where the present life is known.
func (h *history) seen() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.present().seen
}

// fork begins another life, that of etcd as it was at a revision of the n-th life.
func (h *history) fork(n int, revision int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := &life{seen: revision, now: map[string]moment{}, moments: map[string][]moment{}}
	for key, all := range h.lives[n].moments {
		i, _ := slices.BinarySearchFunc(all, revision+1, func(m moment, r int64) int { return int(m.revision - r) })
		next.moments[key] = slices.Clone(all[:i])
		if i > 0 && all[i-1].owner != "" {
			next.now[key] = all[i-1]
		}
	}
	h.lives = append(h.lives, next)
}

// follow records what happens, until stop is called.
func (h *history) follow(t testing.TB, endpoint string) (stop func()) {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	watch := client.Watch(ctx, prefix+"/", clientv3.WithPrefix(), clientv3.WithRev(h.seen()+1))
	wg.Go(func() {
		for resp := range watch {
			if err := resp.Err(); err != nil && ctx.Err() == nil {
				t.Errorf("the history cannot be followed: %v", err)
			}
			for _, ev := range resp.Events {
				h.record(ev)
			}
		}
	})
	return sync.OnceFunc(func() { cancel(); wg.Wait(); client.Close() })
}

func (h *history) record(ev *clientv3.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.present()
	l.seen = ev.Kv.ModRevision
	key, ok := strings.CutPrefix(string(ev.Kv.Key), subnets)
	if !ok {
		return
	}
	m := moment{revision: ev.Kv.ModRevision}
	if ev.Type == clientv3.EventTypePut {
		m.owner, m.value, m.leaseID = ownerText(key, ev.Kv.Value), string(ev.Kv.Value), ev.Kv.Lease
	}
	if isChaosHost(m.owner) {
		m.over = h.judge(l, key, m)
	}
	if m.owner == "" {
		delete(l.now, key)
	} else {
		l.now[key] = m
	}
	l.moments[key] = append(l.moments[key], m)
}

// judge looks at what one of the hosts put, and returns whose keys that overlaps.
func (h *history) judge(l *life, key string, m moment) (over []string) {
	complain := func(format string, args ...any) {
		h.faults = append(h.faults, fmt.Sprintf("life %d, revision %d: ", len(h.lives), m.revision)+fmt.Sprintf(format, args...))
	}
	before := l.now[key]
	switch before.owner {
	case "", junkValue, flannelLease:
	case m.owner:
		if before.value == m.value && before.leaseID == m.leaseID {
			complain("host %s put its lease %s again", m.owner, key)
		}
	default:
		complain("host %s wrote over the lease %s of %s", m.owner, key, before.owner)
	}
	mine, err := subnet.ParseKey(key)
	if err != nil {
		complain("host %s wrote a key that is none: %v", m.owner, err)
	}
	for other, o := range l.now {
		if !isChaosHost(o.owner) || o.owner == m.owner {
			continue
		}
		theirs, _ := subnet.ParseKey(other) // the lease counts, so its key does
		for _, a := range mine {
			if slices.ContainsFunc(theirs, a.Overlaps) {
				over = append(over, other)
			}
		}
	}
	return over
}

// believe takes in what a host says of itself.
func (h *history) believe(host string, u Update) {
	if u.Own.State != Held {
		return
	}
	r := u.Own.Record
	h.mu.Lock()
	defer h.mu.Unlock()
	h.beliefs = append(h.beliefs, belief{host, r.Key(), r.ModRevision, u.Revision})
}

// verdict is what was wrong, each thing once.
func (h *history) verdict() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	wrong := map[string]bool{}
	for _, text := range h.faults {
		wrong[text] = true
	}
	for _, b := range h.beliefs {
		if !slices.ContainsFunc(h.lives, b.holds) {
			wrong[fmt.Sprintf("host %s says that it holds %s of revision %d, but at revision %d it does not in any life:%s",
				b.host, b.key, b.modRevision, b.at, h.tell(b.key))] = true
		}
	}
	return slices.Sorted(maps.Keys(wrong))
}

// tell is what happened to a key.
func (h *history) tell(key string) string {
	var text strings.Builder
	for i, l := range h.lives {
		fmt.Fprintf(&text, "\n\tlife %d:", i+1)
		for _, m := range l.moments[key] {
			fmt.Fprintf(&text, " %d=%s", m.revision, cmp.Or(m.owner, "gone"))
		}
	}
	return text.String()
}

// holds says whether a belief is true: the host put the key, and up to the revision that it knows nobody else did,
// nor was the key deleted.
func (b belief) holds(l *life) bool {
	all := l.moments[b.key]
	i := slices.IndexFunc(all, func(m moment) bool { return m.revision == b.modRevision && m.owner == b.host })
	if i < 0 || slices.ContainsFunc(all[i].over, func(key string) bool { return isChaosHost(l.at(key, b.at)) }) {
		return false
	}
	return !slices.ContainsFunc(all[i:], func(m moment) bool {
		return m.revision <= b.at && m.owner != b.host && m.owner != junkValue && m.owner != flannelLease
	})
}

// at is whose a key was at a revision.
func (l *life) at(key string, revision int64) (owner string) {
	for _, m := range l.moments[key] {
		if m.revision <= revision {
			owner = m.owner
		}
	}
	return owner
}

// ownerText says whose a value is.
func ownerText(key string, value []byte) string {
	l, err := subnet.ParseLease(key, value)
	switch {
	case err != nil:
		return junkValue
	case l.HostID == "":
		return flannelLease
	}
	return l.HostID
}

func isChaosHost(owner string) bool { return strings.HasPrefix(owner, "chaos") }

// await waits until the history is known up to a revision.
func (h *history) await(t testing.TB, revision int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("the history up to revision %d is known", revision), func() bool {
		return h.seen() >= revision
	})
	time.Sleep(time.Millisecond) // for the other events of that revision, in the same answer
}
