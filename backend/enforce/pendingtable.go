package enforce

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/rtnl"
)

var pendingTable = rtnl.Table{Family: unix.NFPROTO_INET, Name: pending.Table}

// holdPending makes the table for containers that are not ready, unless it is right. What is in it stays, also what the plugin
// adds at this moment: the kernel refuses the change then. The caller holds the lock.
func (t *Table) holdPending() error {
	comment := fmt.Sprintf("overlayd 1 %s", t.on.Unready)
	for begin := time.Now(); time.Since(begin) < within; {
		right, at, err := t.lookPending(comment)
		if err != nil || right {
			return err
		}
		if err = t.count(); err != nil {
			return err
		}
		priority, err := t.nextPriority(pendingTable)
		if err != nil {
			return err
		}
		t.batch.TransactionAt(at)
		x := &transaction{b: &t.batch, table: pendingTable}
		if t.on.Unready == Open {
			x.gone()
		} else {
			x.pending(comment, t.on.Unready == Fail, t.waiting, t.counted[pending.Counter], priority)
		}
		if err = t.commit(x); !errors.Is(err, unix.ERESTART) {
			t.touchedPending = t.touchedPending && err != nil
			return err
		}
	}
	return errors.New("others change nftables all the time")
}

// lookPending tells whether the table is right, and when that was, and sees what is in it.
func (t *Table) lookPending(comment string) (right bool, generation uint32, err error) {
	if err = t.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return false, 0, err
	}
	var is []byte
	there := false
	t.batch.Reset()
	t.batch.BeginNft(unix.NFT_MSG_GETGEN, 0, unix.NFPROTO_UNSPEC)
	t.batch.End()
	t.batch.BeginNft(unix.NFT_MSG_GETTABLE, 0, pendingTable.Family)
	t.batch.AttrString(unix.NFTA_TABLE_NAME, pendingTable.Name)
	t.batch.End()
	failed, err := t.conn.Exec(&t.batch, func(i int, body []byte) {
		if i == 0 {
			for _, data := range rtnl.NftAttributes(body, unix.NFTA_GEN_ID) {
				generation = binary.BigEndian.Uint32(data)
			}
			return
		}
		there = true
		for _, data := range rtnl.NftAttributes(body, tableUserdata) {
			is = slices.Clone(data)
		}
	})
	if err = cmp.Or(err, failed[0]); err != nil {
		return false, 0, err
	}
	if !there {
		return t.on.Unready == Open, generation, nil
	}
	now, err := t.dumpPending()
	if err != nil {
		return false, 0, err
	}
	for _, a := range now {
		t.waiting[a] = struct{}{}
	}
	return t.on.Unready != Open && !t.touchedPending && slices.Equal(is, userdata(comment)), generation, nil
}

// dumpPending reads what is pending in the kernel.
func (t *Table) dumpPending() (addrs []netip.Addr, err error) {
	if err := t.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	for _, f := range families {
		all, err := t.conn.Elements(&t.batch, pendingTable, per(pending.Set, f))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("read what is pending: %w", err)
		}
		for _, e := range all {
			if a := rtnl.Addr([]byte(e.Key)); a.IsValid() { // else the table is somebody else's
				addrs = append(addrs, a)
			}
		}
	}
	return addrs, nil
}

// pending makes the table. Of what this host's own connections to a container get as an answer nothing is dropped.
func (x *transaction) pending(comment string, fail bool, waiting map[netip.Addr]struct{}, counted uint64, priority int32) {
	x.anew(comment)
	x.hook("forward", unix.NF_INET_FORWARD, priority)
	x.hook("input", unix.NF_INET_LOCAL_IN, priority)
	x.counter(pending.Counter, counted)
	x.chain("wait")
	x.rule("wait", false, neighbours(133, 137))
	x.rule("wait", false, count(pending.Counter), verdict(drop, ""))
	if fail {
		x.set(pending.UnreadyFail, 0, saddr4)
	}
	x.rule("input", false, state(established|related), verdict(accept, ""))
	for _, f := range families {
		set := per(pending.Set, f)
		x.set(set, 0, source(f))
		x.add(set, pending.Elements(f == 6, waiting))
		x.rule("forward", false, in(set, source(f)), verdict(unix.NFT_GOTO, "wait"))
		x.rule("forward", false, in(set, destination(f)), verdict(unix.NFT_GOTO, "wait"))
		x.rule("input", false, in(set, source(f)), verdict(unix.NFT_GOTO, "wait"))
	}
}

// Release lets addresses pass that were pending: their policies are in force. Those that are not pending are no error.
func (t *Table) Release(ctx context.Context, addrs []netip.Addr) error {
	if t.common != nil {
		return t.common.all.Release(ctx, addrs)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := t.dumpPending()
	if err != nil {
		return err
	}
	gone := map[netip.Addr]struct{}{}
	for _, a := range addrs {
		if delete(t.waiting, a); slices.Contains(now, a) {
			gone[a] = struct{}{}
		}
	}
	if len(gone) == 0 {
		return nil
	}
	x := t.begin(pendingTable)
	for _, f := range families {
		x.remove(per(pending.Set, f), pending.Elements(f == 6, gone))
	}
	if err := t.commit(x); err != nil {
		return fmt.Errorf("let %v pass: %w", addrs, err)
	}
	return nil
}

// Pending are the addresses that wait.
func (t *Table) Pending(ctx context.Context) ([]netip.Addr, error) {
	if t.common != nil {
		return t.common.all.Pending(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dumpPending()
}
