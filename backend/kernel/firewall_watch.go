package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// settle is how long a check waits after a notification. Docker and others change iptables rule by rule: one check a
// burst is enough.
const settle = 50 * time.Millisecond

// subscribeNftables listens for changes of the rules of ns. The socket is nil where the kernel has no nftables.
func subscribeNftables(ns netns.NsHandle) (*nl.NetlinkSocket, error) {
	s, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	return s, err
}

// changed tells that our rules differ from what was applied last. The changes of legacy iptables come without
// notification: those are for a periodic call of drifted.
func (f *firewall) changed() <-chan struct{} { return f.notify }

// run checks the rules whenever the kernel tells of a change near them, until ctx ends. What apply itself has done
// brings a check as well, which finds nothing and stays silent.
func (f *firewall) run(ctx context.Context) error {
	if f.events == nil {
		f.log.Warn("the kernel has no nftables: changes of the firewall are found by audits only")
		<-ctx.Done()
		return nil
	}
	pending := make(chan struct{}, 1)
	group, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, f.events.Close)
	group.Go(func() error { return f.listen(ctx, pending) })
	group.Go(func() error { return f.check(ctx, pending) })
	return group.Wait()
}

// listen marks pending for every notification that may concern us, or that was lost.
func (f *firewall) listen(ctx context.Context, pending chan<- struct{}) error {
	for {
		messages, _, err := f.events.Receive()
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINVAL): // lost, or longer than the buffer
			signal(pending)
		case err != nil:
			return fmt.Errorf("receive changes of nftables: %w", err)
		case concernsUs(messages):
			signal(pending)
		}
	}
}

// check feeds changed.
func (f *firewall) check(ctx context.Context, pending <-chan struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-pending:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		// What cannot be checked is for the reconciler to try, and to report.
		if drift, err := f.drifted(ctx); err != nil || len(drift) > 0 {
			signal(f.notify)
		}
	}
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// concernsUs tells whether one of the messages is about our table, or about a filter table of iptables-nft.
func concernsUs(messages []syscall.NetlinkMessage) bool {
	return slices.ContainsFunc(messages, func(m syscall.NetlinkMessage) bool {
		switch family, table := tableOf(m); family {
		case unix.NFPROTO_INET:
			return table == nftTable
		case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6:
			return table == "filter"
		}
		return false
	})
}

// tableOf is the table that a message of nftables is about; 0, "" for the one that ends a transaction. All others have
// the table's name as attribute 1, behind a struct nfgenmsg whose first byte is the family.
func tableOf(m syscall.NetlinkMessage) (family uint8, table string) {
	if m.Header.Type&0xff == unix.NFT_MSG_NEWGEN || len(m.Data) < nl.SizeofNfgenmsg {
		return 0, ""
	}
	attrs, err := nl.ParseRouteAttr(m.Data[nl.SizeofNfgenmsg:])
	if err != nil {
		return 0, ""
	}
	for _, a := range attrs {
		if a.Attr.Type&nl.NLA_TYPE_MASK == 1 {
			return m.Data[0], strings.TrimRight(string(a.Value), "\x00")
		}
	}
	return 0, ""
}
