package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// subscribeNftables listens for changes of the rules of ns. The socket is nil where the kernel has no nftables.
func subscribeNftables(ns netns.NsHandle) (s *nl.NetlinkSocket, err error) {
	err = rtnl.InNetns(ns, func() (err error) {
		s, err = nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	return s, err
}

// listen nudges for every notification that may concern us, or that was lost, until ctx ends. The changes of legacy
// iptables come without.
func listen(ctx context.Context, events *nl.NetlinkSocket, nudge func()) error {
	if events == nil {
		<-ctx.Done()
		return nil
	}
	defer context.AfterFunc(ctx, events.Close)()
	for {
		messages, _, err := events.Receive()
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINVAL): // lost, or longer than the buffer
			nudge()
		case err != nil:
			return fmt.Errorf("receive changes of nftables: %w", err)
		case concernsUs(messages):
			nudge()
		}
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
