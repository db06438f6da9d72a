package agent

import (
	"maps"
	"net/netip"
	"slices"
)

// findNear asks the kernel which of the peers' hosts are on link, if the plan depends on it. All are asked at once
// after the underlay changed, and each newcomer when it comes.
func (a *Agent) findNear(keys []string) {
	if !a.planner.wantsNear() {
		return
	}
	if a.nearby == nil {
		a.nearby = map[netip.Addr]bool{}
	}
	var ask []netip.Addr
	for _, key := range keys {
		for _, e := range a.peers[key].Endpoints {
			if _, known := a.nearby[e.PublicIP]; !known && e.PublicIP.IsValid() {
				ask = append(ask, e.PublicIP)
			}
		}
	}
	near, err := a.cfg.Kernel.Near(ask)
	if err != nil {
		a.cfg.Log.Warn("cannot ask the kernel which peers are near; they are reached over vxlan", "err", err)
		return
	}
	for i, ip := range ask {
		a.nearby[ip] = near[i]
	}
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
		a.cfg.Kernel.Update(a.planPeers(moved))
	}
}

func (a *Agent) isNear(ip netip.Addr) bool { return a.nearby[ip] }
