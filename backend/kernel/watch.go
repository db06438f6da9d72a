package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

// maxEvents is how many notifications may wait for the reconciler before it is cheaper to look at everything.
const maxEvents = 1 << 17

// muteFor is how long routes of others are not heard after the first.
const muteFor = 50 * time.Millisecond

// event is a notification of the kernel's that concerns us. body is the message without its netlink header.
type event struct {
	typ  uint16
	body []byte
}

// watcher listens to the changes that others make to links, addresses, neighbours and routes.
type watcher struct {
	conn     *rtnl.Conn
	own      uint32
	links    atomic.Pointer[map[int32]bool] // the indexes of our links
	ready    chan struct{}                  // capacity 1: there is something to take
	underlay bells                          // a link, address or route that is not ours changed

	mu     sync.Mutex // also guards receiving
	events []event
	lost   bool
	muted  bool // routes of others are not heard; run ends it in a while
}

// newWatcher listens from now on. It does not hear of what the socket with the port own does, but that it deletes
// FDB entries: the kernel does not say who did.
func newWatcher(ns netns.NsHandle, own uint32) (*watcher, error) {
	c, err := rtnl.Dial(ns, rtnl.EventsSize, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := c.Attach(hearOthers(own)); err != nil {
		c.Close()
		return nil, fmt.Errorf("filter of the netlink socket: %w", err)
	}
	w := &watcher{conn: c, own: own, ready: make(chan struct{}, 1)}
	w.underlay.add()
	w.links.Store(&map[int32]bool{})
	return w, nil
}

// run receives until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { w.conn.Close() })
	defer stop()
	for {
		err := w.conn.Listen(&w.mu, w)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = w.listen()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("receive notifications: %w", err)
		}
	}
}

// Hear keeps what concerns us. It runs for every route of a busy router: no allocation before that is known.
func (w *watcher) Hear(h unix.NlMsghdr, body []byte) {
	typ := h.Type
	links := *w.links.Load()
	switch typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		var h unix.IfInfomsg
		rtnl.Header(body, &h)
		if h.Family != unix.AF_UNSPEC { // a bridge telling of its port
			return
		}
		if !links[h.Index] {
			w.underlay.ring()
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		var h unix.IfAddrmsg
		rtnl.Header(body, &h)
		if !links[int32(h.Index)] {
			w.underlay.ring()
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		var h unix.NdMsg
		rtnl.Header(body, &h)
		if !links[h.Ifindex] {
			return
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(body) < unix.SizeofRtMsg || binary.NativeEndian.Uint32(body[8:])&unix.RTM_F_CLONED != 0 { // rtm_flags
			return
		}
		if body[5] != RouteProtocol { // rtm_protocol
			if !w.muted && !links[routeLink(body[unix.SizeofRtMsg:])] {
				w.mute()
			}
			// Whoever replaces a route, or joins or precedes it, tells of the new one only.
			if typ != unix.RTM_NEWROUTE || decodeRoute(body, nil).mark != conflicting {
				return
			}
		}
	default:
		return
	}
	w.keep(typ, body)
}

// mute ends the hearing of routes of others for a while, after the first: of a routing daemon's hundred thousand no more
// is of interest than that there are any. What was queued before is still to be read.
func (w *watcher) mute() {
	if err := w.conn.Attach(hearNoRoutes(w.own)); err != nil {
		w.underlay.ring() // once for each, then
		return
	}
	w.muted = true
	w.conn.SetReadDeadline(time.Now().Add(muteFor))
}

// listen ends that, and only then tells of the routes: of what was not heard, all happened before.
func (w *watcher) listen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn.SetReadDeadline(time.Time{})
	if err := w.conn.Attach(hearOthers(w.own)); err != nil {
		return err
	}
	w.muted = false
	w.underlay.ring()
	return nil
}

// routeLink is the index of the link that a route leads to.
func routeLink(attrs []byte) int32 {
	for typ, data := range rtnl.Attributes(attrs) {
		if typ == unix.RTA_OIF && len(data) == 4 {
			return int32(binary.NativeEndian.Uint32(data))
		}
	}
	return 0
}

func (w *watcher) keep(typ uint16, body []byte) {
	if len(w.events) == maxEvents {
		w.Lose()
	}
	if !w.lost {
		w.events = append(w.events, event{typ, slices.Clone(body)})
	}
	task.Signal(w.ready)
}

// Lose gives up what is known: all has to be looked at.
func (w *watcher) Lose() {
	w.events, w.lost = nil, true
	w.underlay.ring()
	task.Signal(w.ready)
}

// take returns what came since the last call, and whether something was lost. All that happened before take was called
// is among it: it does not only look at what run has received.
func (w *watcher) take() ([]event, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn.Drain(w)
	events, lost := w.events, w.lost
	w.events, w.lost = nil, false
	return events, lost
}
