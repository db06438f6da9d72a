package bypass

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

const (
	// settle is how long a host is left alone after something changed: who changes it does so step by step.
	settle = 50 * time.Millisecond
	// atMost is how often tables and the like are looked at, and share how many times as long as a look took there is none.
	atMost = time.Second
	share  = 9
	// every is how often all is looked at of which the kernel tells nobody: legacy iptables, IPVS, tcx.
	every = time.Minute
	// retry is how long after a look that failed there is another.
	retry = 5 * time.Second
	// lookWithin is how long a look may take.
	lookWithin = 10 * time.Second
)

// Run looks, and looks again after changes, until ctx ends; then it returns nil. It is to be called once.
func (w *Watcher) Run(ctx context.Context) error {
	defer w.close()
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range w.events {
		group.Go(func() error { return c.Follow(ctx, &w.mu, w) })
	}
	group.Go(func() error { w.loop(ctx); return nil })
	if err := group.Wait(); err != nil {
		return fmt.Errorf("watch what would be passed by: %w", err)
	}
	return nil
}

// Lose implements rtnl.Listener.
func (w *Watcher) Lose() {
	w.lost = true
	w.again()
	task.Signal(w.wake)
}

// again has all links, and what is no table, looked at.
func (w *Watcher) again() {
	w.rest = true
	for index := range w.containers {
		w.dirty[index] = struct{}{}
	}
}

// Hear implements rtnl.Listener. Elements of sets say nothing here: rules with sets are judged as if anything were in them.
func (w *Watcher) Hear(h unix.NlMsghdr, body []byte) {
	switch {
	case h.Type>>8 == unix.NFNL_SUBSYS_NFTABLES:
		msg := h.Type & 0xff
		about, _ := rtnl.AboutOf(h, body)
		if about.Name == "" || msg == unix.NFT_MSG_NEWSETELEM || msg == unix.NFT_MSG_DELSETELEM {
			return
		}
		w.stale[about] = true
	case h.Type >= unix.RTM_NEWQDISC && h.Type <= unix.RTM_GETTFILTER:
		var head tcMsg
		rtnl.Header(body, &head)
		if w.containers[int(head.Index)] {
			w.dirty[int(head.Index)] = struct{}{}
		} else {
			w.rest = true
		}
	default: // rules of routing, policies
		w.rest = true
	}
	task.Signal(w.wake)
}

func (w *Watcher) loop(ctx context.Context) {
	audit := time.NewTicker(w.every)
	defer audit.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var earliest time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		case <-audit.C:
			w.mu.Lock()
			w.again()
			w.mu.Unlock()
		}
		if !sleep(ctx, settle) {
			return
		}
		w.lookAtLinks()
		if wait := time.Until(earliest); wait > 0 {
			timer.Reset(wait)
			continue
		}
		begin := time.Now()
		looked, err := w.lookAtHost(ctx)
		rest := max(atMost, share*time.Since(begin))
		if err != nil {
			rest = max(rest, retry)
			timer.Reset(rest)
		}
		if looked {
			earliest = time.Now().Add(rest)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// lookAtLinks looks at the containers' links that changed.
func (w *Watcher) lookAtLinks() {
	w.mu.Lock()
	indexes, programs := slices.Sorted(maps.Keys(w.dirty)), w.ours.Programs
	clear(w.dirty)
	w.mu.Unlock()
	if len(indexes) == 0 {
		return
	}
	links, err := w.links.look(indexes, programs)
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := false
	for _, index := range indexes {
		if !w.containers[index] {
			continue
		}
		why := ""
		if err != nil {
			why = err.Error()
		} else {
			why = links[index].why()
		}
		before, known := w.byLinks[index]
		_, looked := w.seen[index]
		w.seen[index] = links[index]
		if why == "" {
			delete(w.byLinks, index)
		} else {
			w.byLinks[index] = why
		}
		changed = changed || !looked || known != (why != "") || before != why
		named := slices.ContainsFunc(w.asked, func(pattern string) bool { return like(links[index].name, pattern) })
		if !looked && (named || !links[index].bridged && !w.routed) {
			w.rest = true // a rule may mean it
		}
	}
	if changed {
		task.Signal(w.changed)
	}
}

// lookAtHost looks at all that is about more than one container's link, where it changed, and tells whether it did. The
// error is in the report already.
func (w *Watcher) lookAtHost(ctx context.Context) (looked bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookWithin, firewall.ErrHangs)
	defer cancel()
	w.mu.Lock()
	if !w.known || !w.rest && !w.lost && len(w.stale) == 0 {
		w.mu.Unlock()
		return false, nil
	}
	o, names := w.ours, make(map[string]int, len(w.seen))
	for index, l := range w.seen {
		names[l.name] = index
		o.routed = o.routed || !l.bridged && !l.gone
	}
	if w.lost {
		clear(w.tables)
	}
	for t := range w.stale {
		delete(w.tables, t)
	}
	clear(w.stale)
	w.rest, w.lost = false, false
	w.mu.Unlock()

	report, byTables, asked, err := w.look(ctx, o, names)
	if ctx.Err() != nil && context.Cause(ctx) != firewall.ErrHangs {
		return true, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if report.Host != w.report.Host || report.Tracked != w.report.Tracked || !maps.Equal(byTables, w.byTables) {
		w.log.Info("looked for what the fast path would pass by", "found", report.Host, "tracked", report.Tracked)
		task.Signal(w.changed)
	}
	w.report, w.byTables, w.asked, w.routed = report, byTables, asked, o.routed
	w.rest = w.rest || err != nil
	return true, err
}
