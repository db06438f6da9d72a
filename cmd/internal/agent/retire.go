package agent

import (
	"slices"
	"time"

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
}

// retire keeps the links of the planner in force, and their addresses, beside those of the next. Where the underlay
// changed they cannot receive any more.
func (a *Agent) retire(next *planner) {
	if !next.host.SameUnderlay(a.planner.host.Host) {
		a.retirement = retirement{}
		return
	}
	taken := map[kernel.Key]bool{}
	for _, o := range next.self(a.own.Lease) {
		taken[o.Key()] = true
	}
	var objs []kernel.Object
	for _, o := range append(a.retirement.objs, a.planner.self(a.own.Lease)...) {
		if kind := o.Kind(); (kind == kernel.KindLink || kind == kernel.KindAddress) && !taken[o.Key()] {
			taken[o.Key()] = true
			objs = append(objs, o)
		}
	}
	near := !next.own.WantsNear() && (a.planner.own.WantsNear() || a.retirement.near)
	a.retirement = retirement{objs, near, time.Now().Add(retireAfter)}
}

// bury removes what is retired once its time is over.
func (a *Agent) bury(now time.Time) {
	if len(a.retirement.objs) == 0 && !a.retirement.near {
		return
	}
	if a.unannounced || !a.planner.saidBy(a.latest.Own.Record.Lease) {
		a.retirement.until = now.Add(retireAfter)
	}
	if now.Before(a.retirement.until) {
		return
	}
	a.retirement = retirement{}
	a.bringAbout([]kernel.Claim{{Owner: retired}})
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
	if a.unannounced && a.cfg.Kernel.Status().Pending == 0 && !a.cfg.Firewall.Status().Pending { // the guard, too, lets the new way in
		a.unannounced = false
		a.advertise()
	}
	return nil
}

func (a *Agent) advertise() {
	a.cfg.Member.Advertise(etcdstore.Wish{
		Lease: a.planner.lease(a.cfg.State.HostID, a.cfg.HostName), NIC: a.planner.host.NIC, Config: a.config,
	})
}
