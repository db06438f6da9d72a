package agent

import (
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// settleTime is how long new containers have been refused before the host looks whether there are any: one that was
// being attached when the refusal came has its address by then.
const settleTime = 10 * time.Second

// leave lets go of subnets that the host need not have, once no container has an address of them: of one that another
// host took, or in whose place another is reserved for this host, so that it gets another; of leases beside its own; and
// of those that it had before, so that bridges can have the new one.
func (a *Agent) leave() {
	leaves := a.latest.Own.Leaves
	if a.own == nil {
		return
	}
	own := a.own.Subnets()
	if slices.Contains(leaves, own[0]) {
		a.leaveOwn(own)
	} else {
		a.moving = false
	}
	others := slices.DeleteFunc(slices.Clone(leaves), func(p netip.Prefix) bool { return slices.Contains(own, p) })
	switch {
	case len(others) == 0:
		a.surplus = time.Time{}
	case a.surplus.IsZero():
		a.surplus = time.Now()
	case time.Since(a.surplus) >= settleTime && a.vacate(others):
		a.cfg.Member.Vacant(others)
	}
	if len(a.former) > 0 && a.vacate(a.former) {
		a.former = nil
		a.hold()
	}
}

// leaveOwn lets go of the subnet of the host's lease. While that is still the host's, new containers are refused only
// when there are no old ones, for as long as it takes to be sure of that.
func (a *Agent) leaveOwn(own []netip.Prefix) {
	taken := a.latest.Own.State == etcdstore.Taken
	if taken && (a.refused.IsZero() || time.Since(a.refused) < settleTime) {
		return
	}
	vacant := a.vacate(own)
	if taken || a.moving && !a.refused.IsZero() && time.Since(a.refused) >= settleTime {
		if vacant {
			a.cfg.Log.Info("no container has the subnet: taking another", "subnet", a.own.Key())
			a.cfg.Member.Vacant(own)
		}
	}
	a.moving = vacant && !taken
}

func (a *Agent) vacate(subnets []netip.Prefix) bool {
	vacant, err := a.cfg.Vacate(subnets)
	a.attend(problemVacate, err)
	return vacant && err == nil
}

// moveFrom takes note of what the host had before its present lease.
func (a *Agent) moveFrom(subnets []netip.Prefix) {
	now := a.own.Subnets()
	a.former = append(a.former, subnets...)
	a.former = slices.DeleteFunc(a.former, func(p netip.Prefix) bool { return slices.Contains(now, p) })
}
