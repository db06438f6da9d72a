package firewall

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// watcher listens to the kernel for changes of nftables by others. Those of legacy iptables come without a word.
type watcher struct {
	conn     *rtnl.Conn
	elements *Elements
	nudge    func()
}

// run nudges for every notification that may concern us, or that was lost, until ctx ends.
func (w watcher) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { w.conn.Close() })()
	for ctx.Err() == nil {
		if err := w.conn.Listen(&sync.Mutex{}, w); err != nil && ctx.Err() == nil {
			return fmt.Errorf("receive changes of nftables: %w", err)
		}
	}
	return nil
}

// Lose implements rtnl.Listener.
func (w watcher) Lose() {
	w.elements.lookAll(settle)
	w.nudge()
}

// Hear implements rtnl.Listener. Of our tables all counts but what we ourselves change of elements; of others the filter tables
// of iptables-nft.
func (w watcher) Hear(h unix.NlMsghdr, body []byte) {
	family, table, set := aboutOf(h, body)
	switch msg := h.Type & 0xff; {
	case table == tableName && (msg == unix.NFT_MSG_NEWSETELEM || msg == unix.NFT_MSG_DELSETELEM):
		if h.Pid != w.elements.conn.Port {
			w.elements.Look(Set{family, set})
		}
	case table == tableName && (family == unix.NFPROTO_INET || family == unix.NFPROTO_BRIDGE),
		table == "filter" && (family == unix.NFPROTO_IPV4 || family == unix.NFPROTO_IPV6):
		w.nudge()
	}
}

// aboutOf is the table that a message of nftables is about, and the set if it is about elements; "" for what ends a
// transaction. All others have the table's name as attribute 1, and those about elements the set's as attribute 2, behind a
// struct nfgenmsg whose first byte is the family.
func aboutOf(h unix.NlMsghdr, body []byte) (family uint8, table, set string) {
	if h.Type&0xff == unix.NFT_MSG_NEWGEN || len(body) < nfgenmsgSize {
		return 0, "", ""
	}
	for typ, data := range rtnl.Attributes(body[nfgenmsgSize:]) {
		switch typ {
		case unix.NFTA_SET_ELEM_LIST_TABLE:
			table = unix.ByteSliceToString(data)
		case unix.NFTA_SET_ELEM_LIST_SET:
			set = unix.ByteSliceToString(data)
		}
		if set != "" {
			break
		}
	}
	return body[0], table, set
}
