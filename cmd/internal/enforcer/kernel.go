package enforcer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/backend/enforce"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/policy/compile"
)

// kernel is how far the kernel is.
type kernel struct {
	cleared  bool // it has nothing of ours
	built    bool // it has the table
	stale    bool // the table is not as it should be: rebuild it
	fights   task.Fights
	failures int
	retry    time.Time // before it is tried again; zero: at once
	err      error

	fresh    []netip.Addr // local addresses that were not before, since the last cut
	narrow   bool         // what was allowed may be denied now
	cutAt    time.Time    // when connections are to be judged; zero: they need not
	look     bool         // at which addresses are pending
	pending  []netip.Addr
	bridgeOf map[netip.Addr]string // by which local addresses are reached; empty: none
	bridge   error                 // why the table does not see their traffic
	lookAt   time.Time             // when it is seen to again that it does
	twice    bool                  // connections are to be judged once more
	routed   bool                  // it does because that is routed: there is no br_netfilter
}

// changedByOthers takes in that others changed the table: it is made anew, later each time if they go on to.
func (k *kernel) changedByOthers(now time.Time, log *slog.Logger) {
	if !k.built {
		return
	}
	k.stale, k.narrow = true, true
	k.denies(now)
	if n := k.fights.Healed(log, "policy", 1); n > 0 {
		k.retry = now.Add(task.Backoff(n))
	}
}

// enforce brings the kernel after what is to be in force.
func (e *Enforcer) enforce(ctx context.Context, now time.Time, change compile.Change) {
	k := &e.kernel
	var err error
	switch {
	case now.Before(k.retry):
		k.stale = k.stale || !change.Empty()
		if k.built { // what slipped in while the table was another
			if err := e.cut(ctx, now); err != nil {
				e.cfg.Log.Warn("connections are not judged", "err", err)
			}
		}
		return
	case !e.compiler.Enforcing():
		err = e.clear(ctx)
	default:
		err = e.bring(ctx, now, change)
	}
	if err == nil && k.built {
		err = e.admit(ctx, now)
	}
	if err == nil && k.built {
		err = e.cut(ctx, now)
	}
	if ctx.Err() != nil {
		return
	}
	if k.err = err; err == nil {
		k.failures, k.retry = 0, time.Time{}
		e.letGo()
		e.settled()
		return
	}
	k.stale = true
	k.retry = now.Add(task.Backoff(k.failures))
	k.failures++
	e.cfg.Log.Warn("policies are not programmed", "err", err)
	if e.cfg.Options.Unready == enforce.Open {
		e.settled()
	}
}

// bring brings the table there. Bridges show their traffic before that: what is denied is denied at once, whichever way it comes.
func (e *Enforcer) bring(ctx context.Context, now time.Time, change compile.Change) (err error) {
	k := &e.kernel
	anew := !k.built || k.stale
	if (anew || k.look || !now.Before(k.lookAt)) && e.compiler.Isolated() > 0 {
		e.switchBridges(now, true)
	}
	switch {
	case anew:
		return e.rebuild(ctx, now)
	case change.Empty():
		return nil
	}
	if err = e.cfg.Table.Apply(ctx, change); err != nil {
		k.stale = true
	}
	if change.Narrow || len(k.fresh) > 0 {
		k.denies(now)
	}
	k.narrow = k.narrow || change.Narrow
	return err
}

// denies has connections judged soon.
func (k *kernel) denies(now time.Time) {
	if k.cutAt.IsZero() {
		k.cutAt = now.Add(cutAfter)
	}
}

// clear takes everything away: nothing is denied any more.
func (e *Enforcer) clear(ctx context.Context) error {
	k := &e.kernel
	if k.cleared {
		return nil
	}
	if k.built {
		if err := e.cfg.Table.Remove(ctx); err != nil {
			return err
		}
	} else if found, err := e.cfg.Former(); err != nil || !found {
		k.cleared = err == nil
		return err
	}
	e.switchBridges(time.Time{}, false)
	*k = kernel{cleared: true, fights: k.fights, bridgeOf: map[netip.Addr]string{}}
	e.cfg.Log.Info("no policy is in force any more")
	return nil
}

// rebuild makes the table anew.
func (e *Enforcer) rebuild(ctx context.Context, now time.Time) error {
	k := &e.kernel
	if err := e.cfg.Table.Rebuild(ctx, e.compiler.Full(), e.cfg.Options); err != nil {
		return err
	}
	if !k.built {
		e.cfg.Log.Info("policies are in force", "policies", count(e.believed.values), "isolated", e.compiler.Isolated())
	}
	k.built, k.stale, k.cleared, k.narrow, k.look = true, false, false, true, true
	k.denies(now)
	return nil
}

// admit lets containers that are pending pass whose policies are in force now, without what is left of the connections of who
// had their addresses before; and has bridges show their traffic no more once nobody is isolated.
func (e *Enforcer) admit(ctx context.Context, now time.Time) (err error) {
	k := &e.kernel
	if !k.look {
		return nil
	}
	if k.pending, err = e.cfg.Table.Pending(ctx); err != nil {
		return err
	}
	var ready, wait []netip.Addr
	for _, addr := range k.pending {
		_, local := e.sides[addr]
		var is, theirs bool
		if e.cfg.Beside != nil && !local {
			is, theirs = e.cfg.Beside(addr)
		}
		switch {
		case local, is && !theirs:
			ready = append(ready, addr)
		case is: // for them to let pass
		default:
			wait = append(wait, addr)
		}
	}
	if len(ready) > 0 {
		if known := e.tracked(ready); len(known) > 0 {
			if _, err := e.cfg.Table.Cut(ctx, func(enforce.Flow) bool { return false }, known); err != nil {
				return err
			}
		}
		if err := e.cfg.Table.Release(ctx, ready); err != nil {
			return err
		}
		if e.cfg.Released != nil {
			e.cfg.Released(ready)
		}
		k.fresh = slices.DeleteFunc(k.fresh, func(a netip.Addr) bool { return slices.Contains(ready, a) })
	}
	k.pending, k.look = wait, false
	if e.compiler.Isolated() > 0 {
		return nil
	}
	e.switchBridges(now, false)
	if k.pending, err = e.cfg.Table.Pending(ctx); err == nil && len(k.pending) > 0 { // somebody has just begun
		e.switchBridges(now, true)
	}
	return err
}

// tracked are those of local addresses with which there may be connections of who had them before.
func (e *Enforcer) tracked(addrs []netip.Addr) (known []netip.Addr) {
	for _, l := range e.locals {
		for _, a := range addrs {
			if !l.Untracked && (a == l.LinkLocal || slices.Contains(l.IPs, a)) {
				known = append(known, a)
			}
		}
	}
	return known
}

// switchBridges has the table see the traffic of the bridges of local endpoints, or not. Whoever else takes it from the table is
// found out later: then, too, what was connected meanwhile is judged.
func (e *Enforcer) switchBridges(now time.Time, on bool) {
	k := &e.kernel
	for addr := range e.sides {
		if k.bridgeOf[addr] == "" && !addr.IsLinkLocalUnicast() { // its route may be on its way
			k.bridgeOf[addr] = e.cfg.Bridge(addr)
		}
	}
	maps.DeleteFunc(k.bridgeOf, func(addr netip.Addr, _ string) bool { _, local := e.sides[addr]; return !local && on })
	names := map[string]bool{}
	for _, name := range k.bridgeOf {
		names[name] = true
	}
	delete(names, "")
	k.bridge, k.routed, k.lookAt = nil, false, now.Add(lookAgain)
	for name := range names {
		shown, err := e.cfg.Table.Bridge(name, on)
		k.bridge, k.routed = errors.Join(k.bridge, err), k.routed || shown.Routed
		if shown.Begun {
			k.narrow, k.twice = true, true
			k.denies(now)
		}
	}
}

// cut judges connections, where that is due.
func (e *Enforcer) cut(ctx context.Context, now time.Time) error {
	k := &e.kernel
	listing := !e.following.listed && now.Sub(e.following.since) < listWithin
	if k.cutAt.IsZero() || now.Before(k.cutAt) || listing && e.following.active() {
		if !k.cutAt.IsZero() && !now.Before(k.cutAt) {
			k.cutAt = now.Add(cutAfter)
		}
		return nil
	}
	only := k.fresh
	if k.narrow {
		only = nil
	}
	if k.narrow || len(only) > 0 {
		n, err := e.cfg.Table.Cut(ctx, func(f enforce.Flow) bool { return e.compiler.Judge(f.Src, f.Dst, f.Proto, f.Port) }, only)
		if err != nil {
			return err
		}
		if n > 0 {
			e.cfg.Log.Info("ended connections that are not allowed any more", "connections", n)
		}
	}
	k.fresh, k.narrow, k.cutAt = nil, false, time.Time{}
	if k.twice { // what was there before a bridge showed its traffic is tracked with its next packet
		k.narrow, k.twice = true, false
		k.denies(now)
	}
	return nil
}
