package agent

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/extension"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// self owns the kernel objects that no peer does.
const self = "self"

// follow takes in what the membership has learned and brings the kernel after it.
func (a *Agent) follow() error {
	u := a.cfg.Member.Take()
	if a.latest.Remembered && !u.Remembered {
		a.cfg.Log.Info("etcd is back: following it again")
	}
	a.cfg.Share.want(u)
	peers := u.Peers
	u.Peers = nil // many, and no use any more
	a.latest = u
	rekeyed := a.noteTurns(peers)
	changed := a.absorbPeers(peers)
	a.cfg.Policy.Peers(peers)
	a.cfg.Commands.Peers(peers)
	if u.Own.State == etcdstore.Copied && u.Own.HostID == a.cfg.State.HostID {
		a.renew()
	}
	if !u.Complete {
		return nil
	}
	if err := a.adopt(u); err != nil {
		return err
	}
	a.advance(a.absorbOwn(u.Own), changed)
	a.greet(rekeyed)
	return nil
}

// renew gives the host an identity of its own instead of one that is another's too. Nothing of it is in the kernel yet.
func (a *Agent) renew() {
	before := a.cfg.State.HostID
	if err := a.cfg.State.Renew(); err != nil {
		a.attend(problemIdentity, fmt.Errorf("%s, and cannot take another: %w", a.latest.Own.Reason, err))
		return
	}
	a.attend(problemIdentity, nil)
	a.cfg.Log.Warn("going on with a new identity", "why", a.latest.Own.Reason, "was", before, "hostID", a.cfg.State.HostID)
	a.planner, a.cfg.Last = nil, leasecache.View{}
}

// adopt takes over a network configuration that is new. One that does not work leaves the old one in force, and the host
// says so. A host that knows no other ends if no host can do it, and waits for what is missing on it or around it.
func (a *Agent) adopt(u etcdstore.Update) error {
	if u.Network == nil || a.planner != nil && bytes.Equal(u.Config, a.config) {
		a.denied = nil
		a.attend(problemConfig, nil)
		return nil
	}
	if bytes.Equal(u.Config, a.denied) {
		return nil
	}
	if a.planner == nil && !a.cfg.Share.ready() { // it is looked at again when it is
		return nil
	}
	planner, err := a.plan(*u.Network)
	if err == nil {
		err = a.refuseNetwork(*u.Network)
	}
	if err == nil {
		err = a.take(*u.Network)
	}
	if err == nil {
		a.denied = nil
		a.attend(problemConfig, nil)
		a.network, a.config = u.Network, u.Config
		a.replace(planner)
		return nil
	}
	if errors.Is(err, extension.ErrRunning) {
		a.denied, a.ground.stale = u.Config, true
		return nil
	}
	why := "the new network config is not followed"
	if _, refused := err.(refusal); a.planner == nil && !a.adoptLast(*u.Network, refused) && !refused {
		if backend.Check(u.Network.Backend) != nil {
			return err
		}
		why = "this host cannot serve the network yet"
	}
	a.denied, a.ground.stale = u.Config, true
	a.attend(problemConfig, fmt.Errorf("%s: %w", why, err))
	return nil
}

// adoptLast puts the configuration in force that the host last had, if its subnets are those of the new one and it
// still works. Where the new one is refused, it is enough that the host's own lease counts in both.
func (a *Agent) adoptLast(next subnet.Network, refused bool) bool {
	last, err := subnet.ParseNetwork(a.cfg.Last.Config)
	stays := slices.Equal(last.Pools, next.Pools)
	if own := a.cfg.Last.Own; refused && own != nil {
		stays = stays || !slices.ContainsFunc(own.Subnets(), func(p netip.Prefix) bool { return !next.Contains(p) })
	}
	if err != nil || !stays {
		return false
	}
	planner, err := a.plan(last)
	if err != nil || a.take(last) != nil {
		return false
	}
	a.network, a.config = &last, a.cfg.Last.Config
	a.replace(planner)
	return true
}

// plan looks at the host and makes the planner for n.
func (a *Agent) plan(n subnet.Network) (*planner, error) {
	inUse := InUse(a.cfg.Last)
	if a.planner != nil {
		inUse = slices.Collect(maps.Values(a.planner.host.Addrs))
	}
	host, err := a.cfg.FindHost(n, inUse)
	if err != nil {
		return nil, err
	}
	host.Network = a.cfg.Network
	if host.Told, err = a.cfg.Commands.Told(backend.Commands(n)); err != nil {
		return nil, err
	}
	a.ground.host, a.ground.etcd = host, a.cfg.EtcdAddrs()
	if a.planner != nil && host.SameUnderlay(a.planner.host.Host) {
		host.Former = a.receivesBy()
	}
	host.Finished = n.Backend.Type == "udp" && !a.allTakeUnfinished()
	return newPlanner(n, host)
}

// replace puts a planner in force: every object is planned anew, and peers hear of it if it has news for them; later only when the
// kernel is there. What the host received by goes on for a while, if it was another network, or another host, that was planned for.
func (a *Agent) replace(next *planner) {
	was := a.planner
	a.planner = next
	switch {
	case !a.programmed:
		a.nearby = nil
		a.advertise()
		return
	case next.sameFor(was):
		a.unannounced = a.unannounced || !next.saidBy(was.lease("", ""))
	default:
		a.retire(was)
		// What is reached without a tunnel by another backend is reached as each host's lease says, and each says it when it can.
		if next.own.WantsNear() && !was.own.WantsNear() && next.network.Backend.Type == was.network.Backend.Type {
			a.awaited = time.After(nearAfter)
		}
		a.nearby, a.unannounced = nil, true
	}
	a.program()
}

// sameFor says whether it is for the same network and host, but for what is handed over.
func (p *planner) sameFor(was *planner) bool {
	n, before := p.network, was.network
	return p.host.Equal(was.host.Host) && slices.Equal(n.Pools, before.Pools) && n.Backend.Type == before.Backend.Type &&
		bytes.Equal(n.Backend.Options, before.Backend.Options)
}

// allTakeUnfinished says whether no peer needs inner checksums finished: see backend.TakesUnfinished.
func (a *Agent) allTakeUnfinished() bool {
	for _, p := range a.peers {
		if !backend.TakesUnfinished(p.Lease) && !reservation(*p) {
			return false
		}
	}
	return true
}

// absorbPeers takes in the peers that changed and returns their keys.
func (a *Agent) absorbPeers(peers map[string]*subnet.Record) (changed []string) {
	changed = make([]string, 0, len(peers))
	if len(a.peers) == 0 {
		a.peers = make(map[string]*subnet.Record, len(peers))
	}
	concerns := publicIn(ranges(a.network, a.latest.Network))
	for key, peer := range peers {
		changed = append(changed, key)
		if a.programmed || a.denied != nil { // else all are looked at anyway
			before := a.peers[key]
			a.unclaim(key, before)
			for _, r := range []*subnet.Record{before, peer} {
				if r != nil && slices.ContainsFunc(r.Endpoints, concerns) {
					a.ground.stale, a.denied = true, nil
				}
			}
		}
		if peer == nil {
			delete(a.peers, key)
			delete(a.retirement.met, key)
		} else {
			a.peers[key] = peer
		}
	}
	return changed
}

// absorbOwn takes in the own lease and says whether it is another, or was claimed again. Until one is held, the containers
// of one that was lost go on with what they have.
func (a *Agent) absorbOwn(own etcdstore.Own) (moved bool) {
	if own.State != etcdstore.Held {
		return false
	}
	before := a.own
	if before == nil {
		before = a.cfg.Last.Last
	}
	moved = a.own == nil || byAge(a.own, &own.Record) != 0
	a.own = &own.Record
	a.cfg.Policy.Own(a.own)
	if before != nil {
		a.moveFrom(before.Subnets())
	}
	return moved
}

// advance brings the kernel after what changed, at the cost of what changed.
func (a *Agent) advance(moved bool, changed []string) {
	if a.planner != nil && a.network.Backend.Type == "udp" && a.planner.host.Finished == a.allTakeUnfinished() {
		host := a.planner.host
		host.Finished, host.Former = !host.Finished, a.receivesBy()
		if next, err := newPlanner(*a.network, host); err == nil { // as it was for the same host a moment ago
			next.remember(a.planner)
			a.replace(next)
		}
	}
	switch {
	case a.own == nil || a.planner == nil:
	case moved || !a.programmed:
		a.program()
	default:
		if a.ground.stale {
			changed = append(changed, a.survey()...)
		}
		if len(changed) > 0 {
			a.bringAbout(a.planPeers(changed))
		}
	}
}

// program gives the kernel the complete state.
func (a *Agent) program() {
	a.planner.beside = a.cfg.Share.others()
	a.claims = make(map[claim][]string, len(a.peers))
	clear(a.conflicting)
	maps.DeleteFunc(a.errs, func(key string, _ error) bool { return a.peers[key] == nil })
	a.survey()
	all := a.planPeers(slices.Collect(maps.Keys(a.peers)))
	all = append(all, kernel.Claim{Owner: retired, Objects: a.retirement.objs},
		kernel.Claim{Owner: self, Objects: a.planner.self(a.own.Lease)})
	a.admitAll(all)
	a.hold()
	a.fastOffered = false
	a.cfg.Fast.SetOwn(FastEnd{})
	a.cfg.Share.await(a.cfg.Firewall.Applied())
	a.cfg.Kernel.Replace(all)
	a.programmed = true
	a.cfg.Share.begin()
	a.cfg.Fast.Replace(a.fastClaims(all))
}

// lookAround is called after the host's own links, addresses or routes changed.
func (a *Agent) lookAround() error {
	if a.denied != nil {
		a.denied = nil
		if err := a.adopt(a.latest); err != nil {
			return err
		}
	}
	if a.planner == nil {
		return nil
	}
	next, err := a.plan(*a.network)
	a.attend(problemUnderlay, err)
	if err != nil {
		return nil
	}
	if !next.host.Equal(a.planner.host.Host) {
		a.cfg.Log.Info("the underlay changed", "link", next.host.Link, "mtu", next.host.MTU, "addrs", next.host.Addrs)
		a.replace(next)
		return nil
	}
	a.ground.stale = true
	a.advance(false, nil)
	// The default route may be by another link.
	a.planner.host.Index, a.planner.host.Uplinks, a.planner.host.Present = next.host.Index, next.host.Uplinks, next.host.Present
	if a.programmed {
		a.hold()
		a.refreshNear()
	}
	return nil
}
