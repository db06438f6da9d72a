// Package pending keeps what a container sends, and what is sent to it, until its policies are in force: the CNI plugin adds
// its addresses to a table of nftables before it is plugged, and the daemon, which makes that table where there are policies,
// takes them out. With the daemon dead nothing opens.
//
// It stands apart from package enforce so that the plugin, a process for each container, has nothing else to load.
package pending

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// What the table is named, of the family inet, and what is in it.
const (
	Table       = "overlayd_pending"
	PolicyTable = "overlayd_policy" // what is in force, see package enforce
	Set         = "pending"         // with the number of the family behind it, the addresses that wait
	UnreadyFail = "unready-fail"    // a set that says, by being there, what Wait returns as fail
	Counter     = "pending"         // of packets that were dropped
)

var table = rtnl.Table{Family: unix.NFPROTO_INET, Name: Table}

// nowhere are the errors of a kernel in which there is nothing of the kind: no table, no nf_tables, no nfnetlink.
var nowhere = []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EINVAL}

func isNowhere(err error) bool {
	return slices.ContainsFunc(nowhere, func(no error) bool { return errors.Is(err, no) })
}

// Elements are those of the addresses of a family.
func Elements(v6 bool, addrs map[netip.Addr]struct{}) iter.Seq[rtnl.Element] {
	return func(yield func(rtnl.Element) bool) {
		for a := range addrs {
			if a.Is6() == v6 && !yield(rtnl.Element{Key: string(a.AsSlice())}) {
				return
			}
		}
	}
}

// setOf is the set that an address is in.
func setOf(a netip.Addr) string {
	if a.Is4() {
		return Set + "4"
	}
	return Set + "6"
}

// Add has a container's addresses wait. It is not active where there are no policies, or containers are not to wait.
func Add(addrs []netip.Addr) (active bool, err error) {
	c, err := dial(10 * time.Second)
	if err == nil {
		defer c.Close()
		var b rtnl.Batch
		if _, err = look(c, &b, nil); err == nil { // a transaction that fails is dear: ports.Add says why
			b.Transaction()
			set := map[netip.Addr]struct{}{}
			for _, a := range addrs {
				set[a] = struct{}{}
			}
			for _, v6 := range []bool{false, true} {
				b.Elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, table, setOf(zero[v6]), Elements(v6, set))
			}
			err = c.Commit(&b)
		}
	}
	if isNowhere(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("policies of %v: %w", addrs, err)
	}
	return true, nil
}

var zero = map[bool]netip.Addr{false: netip.IPv4Unspecified(), true: netip.IPv6Unspecified()}

func dial(within time.Duration) (*rtnl.Conn, error) {
	c, err := rtnl.DialNetfilter(netns.None(), rtnl.AnswersSize)
	if err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Waiting says how long Wait waits.
const Waiting = 2 * time.Second

// absent is how long there may be no table while others flush nftables, and the daemon heals that.
const absent = 250 * time.Millisecond

// Wait waits until none of the addresses is pending any more, for Waiting at most; then they are not in force. Fail says that a
// container whose policies are not in force by then is not to be there. Where the daemon took the table away, there is nothing
// to wait for.
func Wait(ctx context.Context, addrs []netip.Addr) (inForce, fail bool, err error) {
	c, err := dial(Waiting + 10*time.Second)
	if err != nil {
		return false, false, fmt.Errorf("wait for the policies of %v: %w", addrs, err)
	}
	defer c.Close()
	var b rtnl.Batch
	begin := time.Now()
	seen := begin
	for pause := 300 * time.Microsecond; ; pause = min(pause*3/2, 20*time.Millisecond) {
		now, err := look(c, &b, addrs)
		switch {
		case err == nil && !now.pending:
			return true, now.fail, nil
		case err == nil:
			seen, fail = time.Now(), now.fail
		case !isNowhere(err):
			return false, fail, fmt.Errorf("wait for the policies of %v: %w", addrs, err)
		case time.Since(seen) > absent:
			return true, fail, nil
		}
		if time.Since(begin)+pause > Waiting {
			return false, fail, nil
		}
		select {
		case <-ctx.Done():
			return false, fail, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// seen is what Wait sees.
type seen struct{ pending, fail bool }

// look asks for the table, its marker, and each address. The error is unix.ENOENT where there is no table.
func look(c *rtnl.Conn, b *rtnl.Batch, addrs []netip.Addr) (s seen, err error) {
	b.Reset()
	for _, set := range []string{Set + "4", UnreadyFail} {
		b.BeginNft(unix.NFT_MSG_GETSET, 0, table.Family)
		b.AttrString(unix.NFTA_SET_TABLE, Table)
		b.AttrString(unix.NFTA_SET_NAME, set)
		b.End()
	}
	for _, a := range addrs {
		b.Elements(unix.NFT_MSG_GETSETELEM, 0, table, setOf(a), maps.Keys(map[rtnl.Element]bool{{Key: string(a.AsSlice())}: true}))
	}
	failed, err := c.Exec(b, nil)
	if err = cmp.Or(err, failed[0]); err != nil {
		return s, err
	}
	s.fail = failed[1] == nil
	for i := range addrs {
		switch err := failed[2+i]; {
		case err == nil:
			s.pending = true
		case !errors.Is(err, unix.ENOENT):
			return s, err
		}
	}
	return s, nil
}

// InForce says whether the host has policies, in force or waited for, of whichever network.
func InForce() (yes bool, err error) {
	c, err := dial(10 * time.Second)
	if err == nil {
		defer c.Close()
		var b rtnl.Batch
		b.BeginNft(unix.NFT_MSG_GETTABLE, 0, table.Family)
		b.End()
		err = c.Dump(&b, func(body []byte) {
			for _, data := range rtnl.NftAttributes(body, unix.NFTA_TABLE_NAME) {
				name := unix.ByteSliceToString(data)
				yes = yes || name == Table || name == PolicyTable || strings.HasPrefix(name, PolicyTable+".") // those of networks with a name
			}
		})
	}
	switch {
	case isNowhere(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("are there policies: %w", err)
	}
	return yes, nil
}
