package enforce

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"

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
	if t.touched {
		if err := t.install(nil, t.sides); err != nil {
			t.log.Error("cannot close what policies isolate", "err", err)
		}
		t.groups = nil
	}
	if err := t.holdPending(); err != nil {
		t.log.Error("cannot keep containers that are not ready from sending", "err", err)
	}
	task.Signal(t.changed)
}

// Lose implements rtnl.Listener.
func (t *Table) Lose() { t.touched, t.touchedPending = true, true }

// Hear implements rtnl.Listener. The caller holds the lock.
func (t *Table) Hear(h unix.NlMsghdr, body []byte) {
	about, set := rtnl.AboutOf(h, body)
	own := h.Pid == t.conn.Port
	switch msg := h.Type & 0xff; {
	case about == policyTable:
		t.touched = t.touched || !own
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

// Bridge has the traffic of a bridge pass the table, or no more; begun says that it did not before: what its containers are
// connected by is tracked from now on. The error is pending.ErrNoBridgeNetfilter if the kernel cannot.
func (t *Table) Bridge(name string, on bool) (begun bool, err error) {
	h, err := netlink.NewHandleAt(t.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("bridge %s: %w", name, err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return false, fmt.Errorf("bridge %s: %w", name, err)
	}
	index := link.Attrs().Index
	shown, err := t.isShown(index)
	if err == nil {
		err = pending.BridgeIn(t.ns, index, on)
	}
	if err != nil {
		return false, err
	}
	if begun = on && !(shown && t.shown[index]); begun {
		t.tracking = time.Now()
	}
	t.shown[index] = on
	return begun, nil
}

// isShown says whether the kernel shows the traffic of a bridge to nftables, whoever has told it so.
func (t *Table) isShown(index int) (yes bool, err error) {
	c, err := rtnl.Dial(t.ns, rtnl.AnswersSize)
	if err != nil {
		return false, err
	}
	defer c.Close()
	var b rtnl.Batch
	b.Begin(unix.RTM_GETLINK, 0, unix.IfInfomsg{Index: int32(index)})
	b.End()
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return false, err
	}
	failed, err := c.Exec(&b, func(_ int, body []byte) {
		for typ, info := range rtnl.Attributes(body[min(unix.SizeofIfInfomsg, len(body)):]) {
			for part, data := range rtnl.Attributes(info) {
				for what, value := range rtnl.Attributes(data) {
					of := typ == unix.IFLA_LINKINFO && part == unix.IFLA_INFO_DATA
					yes = yes || of && what == unix.IFLA_BR_NF_CALL_IPTABLES && len(value) > 0 && value[0] != 0
				}
			}
		}
	})
	return yes, cmp.Or(err, failed[0])
}
