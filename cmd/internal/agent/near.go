package agent

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// nearAfter is how long peers go on being sent vxlan after a network was given DirectRouting: until they have heard of it, too,
// their guards let nothing in that comes without a tunnel.
const nearAfter = 500 * time.Millisecond

// nearAtMost is how many peers there may be, if what depends on it is only that the fast path need not look up where each of its
// packets goes: with more it costs too much to ask whenever somebody changes a route.
const nearAtMost = 4096

// findNear asks the kernel which of the peers' hosts are on the underlay's link, of those whose ways depend on it. All are
// asked at once after the underlay changed, and each newcomer when it comes.
func (a *Agent) findNear(keys []string) {
	if a.nearby == nil {
		a.nearby = map[netip.Addr]bool{}
	}
	if a.awaited != nil {
		return
	}
	fast := len(a.peers) <= nearAtMost && a.cfg.Fast.Active()
	var ask []netip.Addr
	for _, key := range keys {
		peer := a.peers[key]
		if peer == nil {
			continue
		}
		if !fast && !a.planner.wantsNear(peer.Lease) {
			continue
		}
		for _, e := range peer.Endpoints {
			if _, known := a.nearby[e.PublicIP]; !known && e.PublicIP.IsValid() {
				ask = append(ask, e.PublicIP)
			}
		}
	}
	if len(ask) == 0 {
		return
	}
	links, err := a.cfg.OnLink(ask)
	if err != nil {
		a.cfg.Log.Warn("cannot ask the kernel which peers are near: they are taken to be behind gateways", "err", err)
		return
	}
	for i, ip := range ask {
		a.nearby[ip] = links[i] == a.planner.host.Index && links[i] != 0
	}
}

// stopWaiting ends the time in which no peer is near.
func (a *Agent) stopWaiting() error {
	a.awaited = nil
	a.refreshNear()
	return nil
}

// refreshNear plans those peers again that came near or went away.
func (a *Agent) refreshNear() {
	before := a.nearby
	a.nearby = nil
	keys := slices.Collect(maps.Keys(a.peers))
	a.findNear(keys)
	moved := keys[:0]
	for _, key := range keys {
		for _, e := range a.peers[key].Endpoints {
			if before[e.PublicIP] != a.nearby[e.PublicIP] {
				moved = append(moved, key)
				break
			}
		}
	}
	if len(moved) > 0 {
		a.bringAbout(a.planPeers(moved))
	}
}

func (a *Agent) isNear(ip netip.Addr) bool { return a.nearby[ip] }
