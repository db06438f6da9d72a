package agent

import (
	"slices"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

const (
	// retired owns what received packets for the host before the network's backend, VNI or port changed.
	retired = "retired"
	// retireAfter is how long that stays after etcd has the change: until all other hosts have heard of it, and sent
	// what they had in the old way.
	retireAfter = 30 * time.Second
)

// retirement is what is still there of how packets came before, and until when.
type retirement struct {
	objs  []kernel.Object
	near  bool // without a tunnel
	until time.Time
	began time.Time
	met   map[string]bool // by lease key, the peers that wireguard was seen to pass to and back since
}

// retire keeps the links of the planner that peers were told of last, and their addresses, beside those of the next, which is in force.
// Where the underlay changed they cannot receive any more.
func (a *Agent) retire(was *planner) {
	next := a.planner
	if a.unannounced { // nobody came that way: it did not work, or not long enough
		was = a.said
	}
	if !next.host.SameUnderlay(was.host.Host) {
		a.retirement = retirement{}
		return
	}
	taken := map[kernel.Key]bool{}
	for _, o := range next.self(a.own.Lease) {
		taken[o.Key()] = true
	}
	var objs []kernel.Object
	for _, o := range append(a.retirement.objs, was.self(a.own.Lease)...) {
		if kind := o.Kind(); (kind == kernel.KindLink || kind == kernel.KindAddress) && !taken[o.Key()] {
			taken[o.Key()] = true
			objs = append(objs, o)
		}
	}
	now := time.Now()
	next.remember(was)
	r := retirement{objs: objs, until: now.Add(retireAfter), began: now, met: map[string]bool{}}
	r.near = !next.own.WantsNear() && (was.own.WantsNear() || a.retirement.near)
	if next.encrypts() == was.encrypts() && a.retirement.met != nil {
		r.began, r.met = a.retirement.began, a.retirement.met
	}
	a.retirement = r
}

// remember has a planner know the way that the host is moved away from, where one of the two encrypts.
func (p *planner) remember(was *planner) {
	if p.encrypts() != was.encrypts() {
		p.before = was.network.Backend.Type
		p.others[p.before] = was.own
	} else if p.before = was.before; p.before != "" {
		p.others[p.before] = was.others[p.before]
	}
}

// bury removes what is retired once its time is over.
func (a *Agent) bury(now time.Time) {
	if len(a.retirement.objs) == 0 && !a.retirement.near {
		return
	}
	if a.unannounced || !a.planner.saidBy(a.latest.Own.Record.Lease) || a.outrun() {
		a.retirement.until = now.Add(retireAfter)
	}
	if now.Before(a.retirement.until) {
		return
	}
	a.retirement = retirement{}
	if a.planner.before == "" {
		a.hold()
		a.bringAbout([]kernel.Claim{{Owner: retired}})
		return
	}
	if next, err := newPlanner(*a.network, a.planner.host); err == nil { // as it was for the same host a while ago
		a.replace(next) // which knows no way before
	}
}

// outrun says whether a host has not heard yet that the network moves away from wireguard: it is reached by nothing else.
func (a *Agent) outrun() bool {
	if a.planner.before != backend.WireGuard {
		return false
	}
	for _, peer := range a.peers {
		if peer.Backend == backend.WireGuard && !peer.Outside() { // who is outside never hears of it
			return true
		}
	}
	return false
}

// meet takes note of the peers with which wireguard has come up while the network moves to it: they are sent nothing in plain
// text any more.
func (a *Agent) meet() error {
	if !a.programmed || a.planner == nil || !a.planner.encrypts() || a.planner.before == "" {
		return nil
	}
	sessions := a.cfg.Kernel.Sessions()
	var met []string
	for key, peer := range a.peers {
		if a.retirement.met[key] || a.errs[key] != nil {
			continue
		}
		_, objs, _ := a.planner.peer(a.own.Lease, peer.Lease, a.isNear, true)
		waits := func(o kernel.Object) bool {
			w, ok := o.(kernel.WGPeer)
			return ok && sessions[w.ID()].Handshake.Before(a.retirement.began) // of another life of the peer's link, else
		}
		if len(objs) > 0 && !slices.ContainsFunc(objs, waits) {
			met = append(met, key)
		}
	}
	for _, key := range met {
		a.retirement.met[key] = true
	}
	if len(met) > 0 {
		a.bringAbout(a.planPeers(met))
	}
	return nil
}

// receivesBy are the links that the host receives by, and those by which it did before.
func (a *Agent) receivesBy() (links []kernel.Object) {
	if a.programmed {
		links = a.planner.self(a.own.Lease)
	}
	links = slices.DeleteFunc(append(links, a.planner.host.Former...), func(o kernel.Object) bool { return o.Kind() != kernel.KindLink })
	seen := map[kernel.Object]bool{}
	return slices.DeleteFunc(links, func(o kernel.Object) bool { known := seen[o]; seen[o] = true; return known })
}

// announce tells peers how the host is reached now, once the kernel is ready for them.
func (a *Agent) announce() error {
	// The guard, where there is one, is to let in who comes the new way: until it does the old way stays.
	guarded := !a.cfg.Shield.guards() || a.cfg.Unguarded() != nil || a.cfg.Share.regarded() && !a.cfg.Firewall.Status().Pending
	if k := a.cfg.Kernel.Status(); a.unannounced && guarded && k.Pending+a.ownFailures(k) == 0 {
		a.unannounced = false
		a.advertise()
	}
	return nil
}

func (a *Agent) advertise() {
	a.said = a.planner
	a.cfg.Member.Advertise(etcdstore.Wish{
		Lease: a.planner.lease(a.cfg.State.HostID, a.cfg.HostName), NIC: a.planner.host.NIC, Config: a.config,
	})
}
