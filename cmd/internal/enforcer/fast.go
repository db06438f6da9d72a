package enforcer

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/policy/compile"
)

// fastPath is told which addresses of containers must go where the table sees them.
type fastPath interface {
	SetSlow(judge func(netip.Addr, attachment.Key) bool)
	Slow(addrs []netip.Addr, slow bool)
}

// ways are which addresses need not go there. What is isolated, pending, or not known yet is none of them: first it is slow, and
// then the table isolates it; and only when the table is as it should be it may be fast again.
type ways struct {
	pending []netip.Addr // as free was made
	look    bool         // free may be otherwise

	mu   sync.Mutex                    // guards what follows, for who asks
	all  bool                          // nothing is in force
	free map[netip.Addr]attachment.Key // and whose they are: of the next who has the address nothing is known
}

func (w *ways) slow(addr netip.Addr, of attachment.Key) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	key, free := w.free[addr]
	return !w.all && (!free || key != of)
}

func (w *ways) set(all bool, free map[netip.Addr]attachment.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all, w.free = all, free
}

// holdBack makes slow whom the table is about to isolate, or does not know any more.
func (e *Enforcer) holdBack(c compile.Change) {
	w := &e.ways
	w.look = w.look || len(c.Set)+len(c.Gone) > 0
	if w.all && e.compiler.Enforcing() { // the first policy
		w.set(false, e.freed())
		e.cfg.Fast.SetSlow(w.slow)
		return
	}
	slow := slices.Clone(c.Gone)
	for addr, s := range c.Set {
		if s != (compile.Sides{}) {
			slow = append(slow, addr)
		}
	}
	w.mu.Lock()
	slow = slices.DeleteFunc(slow, func(a netip.Addr) bool { _, free := w.free[a]; delete(w.free, a); return !free })
	w.mu.Unlock()
	if len(slow) > 0 {
		e.cfg.Fast.Slow(slow, true)
	}
}

// letGo lets be fast who need not be slow any more, now that the kernel has what is to be in force.
func (e *Enforcer) letGo() {
	w := &e.ways
	switch {
	case !e.compiler.Enforcing():
		if !w.all {
			w.set(true, nil)
			e.cfg.Fast.SetSlow(w.slow)
		}
		return
	case !w.look && slices.Equal(w.pending, e.kernel.pending):
		return
	}
	w.look, w.pending = false, e.kernel.pending
	before, now := w.free, e.freed()
	var gone, come []netip.Addr
	for addr, key := range before {
		if now[addr] != key {
			gone = append(gone, addr)
		}
	}
	for addr, key := range now {
		if before[addr] != key {
			come = append(come, addr)
		}
	}
	w.set(false, now)
	e.cfg.Fast.Slow(gone, true)
	e.cfg.Fast.Slow(come, false)
}

// freed are the addresses of endpoints that policies isolate in no direction.
func (e *Enforcer) freed() map[netip.Addr]attachment.Key {
	pending := map[netip.Addr]bool{}
	for _, addr := range e.kernel.pending {
		pending[addr] = true
	}
	free, since := map[netip.Addr]attachment.Key{}, map[netip.Addr]time.Time{}
	for _, l := range e.locals {
		for _, addr := range l.IPs {
			if sides, known := e.sides[addr]; known && sides == (compile.Sides{}) && !pending[addr] && !l.Created.Before(since[addr]) {
				free[addr], since[addr] = attachment.Key{Network: l.Network, ContainerID: l.ContainerID, IfName: l.IfName}, l.Created
			}
		}
	}
	return free
}
