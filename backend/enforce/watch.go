package enforce

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

// Run heals what others change, and reads denials, until ctx ends; then it returns nil and leaves all as it is.
func (t *Table) Run(ctx context.Context) error {
	defer t.conn.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.watch(ctx) })
	group.Go(func() error { return t.readDenials(ctx) })
	return group.Wait()
}

// watch closes what others have opened.
func (t *Table) watch(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { t.events.Close() })()
	for ctx.Err() == nil {
		if err := t.events.Listen(&t.mu, t); err != nil && ctx.Err() == nil {
			return fmt.Errorf("receive changes of nftables: %w", err)
		}
		t.heal()
	}
	return nil
}

// heal closes the table if others changed it, and has it made anew.
func (t *Table) heal() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.on == nil || !t.touched && !t.touchedPending {
		return
	}
	t.log.Warn("others changed the rules of policies: closing, and making them anew")
	routes := t.touched
	if t.table == (rtnl.Table{}) {
		t.touched = false
	} else if t.touched {
		if err := t.install(nil, t.sides); err != nil {
			t.log.Error("cannot close what policies isolate", "err", err)
		}
		t.groups = nil
	}
	if t.common != nil {
		task.Signal(t.changed)
		return
	}
	if routes {
		t.holdRoutes()
	}
	if err := t.holdPending(); err != nil {
		t.log.Error("cannot keep containers that are not ready from sending", "err", err)
	}
	task.Signal(t.changed)
}

// Lose implements rtnl.Listener.
func (t *Table) Lose() { t.touched, t.touchedPending = true, t.common == nil }

// Hear implements rtnl.Listener. The caller holds the lock.
func (t *Table) Hear(h unix.NlMsghdr, body []byte) {
	about, set := rtnl.AboutOf(h, body)
	own := h.Pid == t.conn.Port
	switch msg := h.Type & 0xff; {
	case about == t.table:
		t.touched = t.touched || !own
	case t.common != nil: // all else is looked after there
	case about == pending.Routes:
		if !own && t.routes && msg != unix.NFT_MSG_NEWSETELEM { // the plugin's, of a port
			t.touched, t.routes = true, false
		}
	case about != pendingTable:
	case msg == unix.NFT_MSG_NEWSETELEM && (set == per(pending.Set, 4) || set == per(pending.Set, 6)):
		for _, e := range rtnl.ElementsOf(body) {
			if a := rtnl.Addr([]byte(e.Key)); a.IsValid() {
				t.waiting[a] = struct{}{}
			}
		}
	case !own:
		t.touchedPending = true
	case msg == unix.NFT_MSG_DELSETELEM:
		for _, e := range rtnl.ElementsOf(body) {
			delete(t.waiting, rtnl.Addr([]byte(e.Key)))
		}
	}
}
