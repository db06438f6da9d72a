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
	if err := w.conn.Follow(ctx, &sync.Mutex{}, w); err != nil {
		return fmt.Errorf("receive changes of nftables: %w", err)
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
	about, set := rtnl.AboutOf(h, body)
	family, table := about.Family, about.Name
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
