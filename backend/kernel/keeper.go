package kernel

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// lookEvery is how often wireguard links are looked at, where that costs less than a hundredth of a processor.
const lookEvery = 5 * time.Second

// A session that works answers within 10 s to what is sent (KEEPALIVE_TIMEOUT of wireguard's paper), and after 15 s without
// an answer wireguard shakes hands anew: after silence there is something wrong. Each endpoint then has a turn, of three
// tries (REKEY_TIMEOUT is 5 s), as in Talos' KubeSpan.
const (
	silence = 25 * time.Second
	turn    = 15 * time.Second
)

// keeper looks at wireguard links now and then: what peers they have, which sessions are up, and whether a peer is to be
// sought at another of its endpoints.
type keeper struct {
	at    time.Time   // when to look; zero: there is nothing to look at
	looks chan []look // where the looks will come from that are under way; nil: none are
	err   bool        // the last one failed
	peers map[WGPeerID]*tended
	up    map[WGPeerID]bool // sessions that were when that was last told

	greet   map[WGPeerID]bool // to shake hands with, when they are programmed
	greeted map[WGPeerID]bool // that have not answered yet
	hurry   time.Time         // until when to look often for their answers

	every, silence, turn time.Duration // as the constants say
}

func newKeeper() keeper {
	return keeper{
		every: lookEvery, silence: silence, turn: turn,
		peers: map[WGPeerID]*tended{}, up: map[WGPeerID]bool{}, greet: map[WGPeerID]bool{}, greeted: map[WGPeerID]bool{},
	}
}

// look is what a wireguard link told of itself.
type look struct {
	link    link
	device  *wgtypes.Device
	err     error
	changes uint64        // the tracker's when it began
	took    time.Duration // of a processor, all of them
}

// lookAt asks the wireguard links among some for all that they know. It runs beside the loop. What it costs is not how long it
// takes: a host that is busy, or a process that answers late, is looked at no less often.
func (r *Reconciler) lookAt(links []link, changes uint64) (looks []look) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := threadTime()
	c, err := dialWG(r.ns)
	if err == nil {
		defer c.close()
	}
	for _, l := range links {
		if _, ok := l.info.(wgInfo); !ok {
			continue
		}
		k := look{link: l, err: err, changes: changes}
		if err == nil {
			k.device, k.err = c.device(l.name)
		}
		looks = append(looks, k)
	}
	for i := range looks {
		looks[i].took = threadTime() - began
	}
	return looks
}

// threadTime is how long the thread has had a processor.
func threadTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &u) // it fails for a bad argument only
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// lookDue begins a look when it is due.
func (r *Reconciler) lookDue(now time.Time) {
	if r.keeper.at.IsZero() || now.Before(r.keeper.at) || r.keeper.looks != nil || r.audit.kind == KindPeer {
		return
	}
	r.keeper.at = time.Time{}
	links := slices.DeleteFunc(r.ourLinks(), func(l link) bool { _, ok := l.info.(wgInfo); return !ok })
	if len(links) == 0 {
		return
	}
	looks, changes := make(chan []look, 1), r.claims.trackers[KindPeer].changes
	r.keeper.looks = looks
	go func() { looks <- r.lookAt(links, changes) }()
}

// takeLooks takes in all that links told. What peers they have is of no use if that changed meanwhile.
func (r *Reconciler) takeLooks(looks []look, now time.Time) {
	r.keeper.looks = nil
	t := r.claims.trackers[KindPeer]
	settled := r.audit.kind != KindPeer && len(looks) > 0 && t.changes == looks[0].changes
	for _, l := range looks {
		if !r.takeLook(l, now) || !settled {
			continue
		}
		t.dump++
		r.eachPeer(l, now, func(e *tracked, is WGPeer) {
			e.seen = t.dump
			r.observed(t, e, is, now)
		})
		for _, e := range t.entries {
			if had, ok := e.had.(WGPeer); ok && had.Link == l.link.name && e.seen != t.dump {
				r.observed(t, e, nil, now)
			}
		}
	}
}

// auditPeers takes in what peers there are, for an audit. Of a link that says nothing all is as it was.
func (r *Reconciler) auditPeers(looks []look, now time.Time) {
	t := r.claims.trackers[KindPeer]
	silent := map[string]bool{}
	for _, l := range looks {
		if !r.takeLook(l, now) {
			silent[l.link.name] = true
			continue
		}
		r.eachPeer(l, now, func(e *tracked, is WGPeer) { t.dumped(e, is) })
	}
	for _, e := range t.entries {
		if had, ok := e.had.(WGPeer); ok && silent[had.Link] {
			e.seen = t.dump
		}
	}
}

// eachPeer tells f of every peer of a link as it is, in the terms of what is wanted.
func (r *Reconciler) eachPeer(l look, now time.Time, f func(e *tracked, is WGPeer)) {
	t := r.claims.trackers[KindPeer]
	for i := range l.device.Peers {
		p := &l.device.Peers[i]
		o := peerOf(l.link.name, p)
		e := t.entry(o.Key())
		f(e, o.takesFor(e, endpointOf(p), sessionOf(p).Up(now)))
	}
}

// takeLook takes in what a link told of itself, and of its sessions, and tells whether it told anything. It plans the next.
func (r *Reconciler) takeLook(l look, now time.Time) bool {
	r.keeper.at = now.Add(max(r.keeper.every, 100*l.took))
	have, ok := r.links.byName[l.link.name]
	if !ok || have.index != l.link.index {
		return false // another has its name now
	}
	if l.err != nil {
		if !r.keeper.err && !errors.Is(l.err, os.ErrNotExist) {
			r.log.Warn("wireguard link says nothing", "link", l.link.name, "err", l.err)
		}
		r.keeper.err = true
		return false
	}
	r.keeper.err = false
	if i, ok := have.info.(wgInfo); ok && i != i.learned(l.device) {
		have.info = i.learned(l.device)
		r.links.set(have)
		links := r.claims.trackers[KindLink]
		if e := links.entries[linkKey(have.name)]; e != nil {
			r.observed(links, e, r.linkHad(e), now)
		}
	}
	r.takeSessions(l.link.name, l.device.Peers, now)
	r.tend(l, now)
	for id := range r.keeper.greeted {
		if r.Sessions()[id].Up(now) {
			delete(r.keeper.greeted, id)
		}
	}
	if len(r.keeper.greeted) > 0 && now.Before(r.keeper.hurry) {
		r.keeper.at = now.Add(max(lookEvery/10, 10*l.took))
	}
	return true
}

// greetDue shakes hands with those that are programmed.
func (r *Reconciler) greetDue(now time.Time) {
	t := r.claims.trackers[KindPeer]
	byLink := map[string][]WGPeer{}
	for id := range r.keeper.greet {
		e := t.wanted(WGPeer{Link: id.Link, Public: id.Key}.Key())
		if e != nil && e.differs() {
			continue // it waits for its link, or fails
		}
		delete(r.keeper.greet, id)
		if e == nil {
			continue
		}
		byLink[id.Link] = append(byLink[id.Link], e.want.(WGPeer))
		r.keeper.greeted[id] = true
	}
	for link, peers := range byLink {
		r.shakeHands(link, peers)
		r.keeper.hurry = now.Add(2 * lookEvery)
		r.keeper.at = now.Add(lookEvery / 20)
	}
}

// greetKept has wireguard shake hands with all peers of a link that are kept alive: after its key changed they hear
// nothing before they try.
func (r *Reconciler) greetKept(link string) {
	for _, o := range r.claims.trackers[KindPeer].values() {
		if p, ok := o.(WGPeer); ok && p.Link == link && p.Keepalive > 0 {
			r.keeper.greet[p.ID()] = true
		}
	}
}

// shakeHands has wireguard send what is empty: it does when a peer is to be kept alive that was not (set_peer in
// drivers/net/wireguard/netlink.c). A handshake comes before, where there is no session.
func (r *Reconciler) shakeHands(link string, peers []WGPeer) {
	c, err := dialWG(r.ns)
	if err != nil {
		r.log.Warn("no handshake", "link", link, "err", err)
		return
	}
	defer c.close()
	r.claims.trackers[KindPeer].changes++ // or a look that is under way would take it for the deed of others
	for some := range slices.Chunk(peers, wgBatch) {
		for _, interval := range []func(WGPeer) uint16{
			func(WGPeer) uint16 { return 0 },
			func(p WGPeer) uint16 { return max(p.Keepalive, 1) },
			func(p WGPeer) uint16 { return p.Keepalive },
		} {
			var cfg wgtypes.Config
			for _, p := range some {
				cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{
					PublicKey: wgtypes.Key(p.Public), UpdateOnly: true,
					PersistentKeepaliveInterval: new(time.Duration(interval(p)) * time.Second),
				})
			}
			if err := c.set(link, cfg); err != nil {
				r.log.Warn("no handshake", "link", link, "err", err)
				return
			}
		}
	}
}
