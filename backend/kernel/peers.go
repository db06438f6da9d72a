package kernel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/overlayd/overlayd/backend/task"
)

// removalsAtOnce is how many peers are removed before all else has its turn: each costs the kernel a few milliseconds (it
// waits for RCU), and no batch helps.
const removalsAtOnce = 256

var errOwnKey = errors.New("its public key is that of the link itself: a host of the same key, a copy of this one perhaps")

// peerJob is what is to be changed of a peer.
type peerJob struct {
	e   *tracked
	cfg wgtypes.PeerConfig
}

// programPeers puts or removes the pending peers of wireguard links and of flannel's udp. Those of a link that goes, go
// with it.
func (r *Reconciler) programPeers(ctx context.Context, op op) {
	t := r.claims.trackers[KindPeer]
	wg, udp := map[string][]peerJob{}, map[string][]*tracked{}
	removals := 0
	for _, e := range t.take(op) {
		o := e.object().(standing)
		l, ok := r.ourLink(o.link())
		switch {
		case !ok && op == put:
			t.block(e, o.link())
			continue
		case !ok, op == remove && r.claims.trackers[KindLink].wanted(linkKey(o.link())) == nil:
			t.done(e)
			continue
		}
		switch o := o.(type) {
		case UDPPeer:
			udp[o.Link] = append(udp[o.Link], e)
		case WGPeer:
			if op == remove {
				if removals++; removals > removalsAtOnce {
					t.enqueue(e)
					task.Signal(r.wake)
					continue
				}
				wg[o.Link] = append(wg[o.Link], peerJob{e, wgtypes.PeerConfig{PublicKey: wgtypes.Key(o.Public), Remove: true, UpdateOnly: true}})
				continue
			}
			if l.info.(wgInfo).public == o.Public {
				r.failed(t, e, errOwnKey, time.Now())
				continue
			}
			had, _ := e.had.(WGPeer)
			wg[o.Link] = append(wg[o.Link], peerJob{e, r.peerConfig(had, o, e.had != nil)})
		}
	}
	for link, all := range udp {
		r.setUDPPeers(t, op, link, all)
	}
	for link, all := range wg {
		r.setPeers(ctx, t, op, link, all)
	}
}

// setPeers brings peers of one link there, in batches. Those come last that give up addresses: others may have got them
// before, and took them in one step.
func (r *Reconciler) setPeers(ctx context.Context, t *tracker, op op, link string, all []peerJob) {
	slices.SortStableFunc(all, func(a, b peerJob) int { return btoi(a.givesUp()) - btoi(b.givesUp()) })
	c, err := dialWG(r.ns)
	if err == nil {
		defer c.close()
	}
	for len(all) > 0 {
		if ctx.Err() != nil {
			for _, j := range all {
				t.enqueue(j.e)
			}
			return
		}
		some := all[:min(len(all), wgBatch)]
		all = all[len(some):]
		failed := err
		if err == nil {
			failed = c.set(link, configOf(some))
		}
		if errors.Is(failed, os.ErrDeadlineExceeded) { // a process hangs: nobody waits for it once for each peer
			err = failed
		}
		for i, j := range some {
			if failed != nil && len(some) > 1 && err == nil { // whose fault is it?
				r.peerOutcome(t, op, j.e, c.set(link, configOf(some[i:i+1])))
			} else {
				r.peerOutcome(t, op, j.e, failed)
			}
		}
	}
}

func (j peerJob) givesUp() bool { return j.cfg.ReplaceAllowedIPs && j.cfg.UpdateOnly }

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func configOf(jobs []peerJob) wgtypes.Config {
	peers := make([]wgtypes.PeerConfig, len(jobs))
	for i, j := range jobs {
		peers[i] = j.cfg
	}
	return wgtypes.Config{Peers: peers}
}

func (r *Reconciler) peerOutcome(t *tracker, op op, e *tracked, err error) {
	if errors.Is(err, os.ErrNotExist) {
		err = unix.ENODEV
	}
	r.outcome(t, op, e, err, time.Now())
}

// peerConfig is what brings a peer from had, if it is there, to want: no more than what differs, because all else costs its
// session, or the endpoint that it has roamed to.
func (r *Reconciler) peerConfig(had, want WGPeer, there bool) wgtypes.PeerConfig {
	cfg := wgtypes.PeerConfig{PublicKey: wgtypes.Key(want.Public), UpdateOnly: there}
	cfg.ReplaceAllowedIPs = !there || had.Allowed == [2]netip.Prefix{} || slices.ContainsFunc(had.Allowed[:], func(p netip.Prefix) bool {
		return p.IsValid() && !slices.Contains(want.Allowed[:], p)
	})
	for _, p := range want.Allowed {
		if p.IsValid() && (cfg.ReplaceAllowedIPs || !slices.Contains(had.Allowed[:], p)) {
			cfg.AllowedIPs = append(cfg.AllowedIPs, ipNet(p))
		}
	}
	if had.PSK != want.PSK {
		cfg.PresharedKey = new(wgtypes.Key(want.PSK))
	}
	if had.Keepalive != want.Keepalive {
		cfg.PersistentKeepaliveInterval = new(time.Duration(want.Keepalive) * time.Second)
	}
	if at := r.endpointFor(had, want, there); at.IsValid() {
		cfg.Endpoint = net.UDPAddrFromAddrPort(at)
	}
	return cfg
}

// setUDPPeers brings subnets of one link of flannel's udp there.
func (r *Reconciler) setUDPPeers(t *tracker, op op, link string, all []*tracked) {
	peers := make([]UDPPeer, len(all))
	for i, e := range all {
		peers[i] = e.object().(UDPPeer)
	}
	err := error(unix.ENODEV)
	switch {
	case r.userSpace == nil:
	case op == put:
		err = r.userSpace.SetUDPPeers(link, peers, nil)
	default:
		err = r.userSpace.SetUDPPeers(link, nil, peers)
	}
	for _, e := range all {
		r.outcome(t, op, e, err, time.Now())
	}
}
