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

// leave lets go of subnets that are not the host's any more: of one that another host took, once no container has an
// address of it, so that the host gets another; and of those that it had before, so that bridges can have the new one.
func (a *Agent) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.latest.Own.State == etcdstore.Taken && !a.refused.IsZero() && time.Since(a.refused) >= settleTime {
		if vacant := a.vacate(a.own.Subnets()); vacant {
			a.cfg.Log.Info("no container has the lost subnet: taking another", "subnet", a.own.Key())
			a.cfg.Member.Abandon()
		}
	}
	if len(a.former) > 0 && a.vacate(a.former) {
		a.former = nil
	}
}

func (a *Agent) vacate(subnets []netip.Prefix) bool {
	vacant, err := a.cfg.Vacate(subnets)
	if err != nil {
		a.complain(problemVacate, err.Error())
		return false
	}
	a.settle(problemVacate)
	return vacant
}

// moveFrom takes note of what the host had before its present lease.
func (a *Agent) moveFrom(subnets []netip.Prefix) {
	now := a.own.Subnets()
	a.former = append(a.former, subnets...)
	a.former = slices.DeleteFunc(a.former, func(p netip.Prefix) bool { return slices.Contains(now, p) })
}
