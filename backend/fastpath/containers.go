package fastpath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/overlayd/overlayd/backend/task"
)

// SetContainers says which containers there are, all of them. What is gone is gone when it returns.
func (p *Path) SetContainers(all []Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := make(map[int]Container, len(p.containers))
	for _, c := range p.containers {
		before[c.Index] = c
	}
	for _, c := range all {
		if had, ok := before[c.Index]; !ok || had.MAC != c.MAC || !slices.Equal(had.Addrs, c.Addrs) {
			delete(p.gone, c.Index)
		}
	}
	p.containers = slices.Clone(all)
	p.said++
	p.judgeAll()
	task.Signal(p.wake)
}

// SetSlow has judge say which addresses of containers must go the slow way. It is asked for every one that comes, and may be
// asked while it calls Slow.
func (p *Path) SetSlow(judge func(netip.Addr) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.judge, p.judged = judge, nil
	p.said++
	p.judgeAll()
}

// Slow says that addresses of containers must go the slow way, or need not any more. It holds when it returns.
func (p *Path) Slow(addrs []netip.Addr, slow bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said++
	for _, a := range addrs {
		if _, ok := p.judged[a]; ok {
			p.judged[a] = slow
		}
	}
	p.bringLocals()
}

// judgeAll has those addresses judged that were not yet. p.mu is not held meanwhile: who judges may be waiting for it.
func (p *Path) judgeAll() {
	for {
		judged, said := map[netip.Addr]bool{}, p.said
		var unknown []netip.Addr
		for _, c := range p.containers {
			for _, a := range c.Addrs {
				if slow, ok := p.judged[a]; ok {
					judged[a] = slow
				} else {
					unknown = append(unknown, a)
					judged[a] = false // without a judge none is slow
				}
			}
		}
		if judge := p.judge; judge != nil && len(unknown) > 0 {
			p.mu.Unlock()
			for _, a := range unknown {
				judged[a] = judge(a)
			}
			p.mu.Lock()
			if p.said != said {
				continue // it may have been about one of them
			}
		}
		p.judged = judged
		p.bringLocals()
		return
	}
}

// bringLocals brings the addresses of containers to the kernel: first goes what must not be there any more. One that several
// containers have is not there.
func (p *Path) bringLocals() {
	want, twice, untold := map[netip.Addr]programLocal{}, map[netip.Addr]bool{}, map[netip.Addr]error{}
	for _, c := range p.containers {
		for _, a := range c.Addrs {
			l := programLocal{Link: uint32(c.Index), Mac: c.MAC, Gateway: c.Gateway}
			if p.whySlow(c, a) != "" {
				l.Slow = 1
			}
			_, there := want[a]
			twice[a] = twice[a] || there
			want[a] = l
		}
	}
	for a := range p.locals {
		if _, ok := want[a]; !ok || twice[a] {
			p.dropLocal(a)
		}
	}
	for a, l := range want {
		if had, ok := p.locals[a]; twice[a] || ok && had == l {
			continue
		}
		if err := p.kernel.Locals.Update(words(a), &l, ebpf.UpdateAny); err != nil {
			if p.untold[a] == nil {
				p.cfg.Log.Warn("container takes the slow way", "addr", a, "err", err)
			}
			untold[a] = err
			p.dropLocal(a)
			continue
		}
		p.locals[a] = l
	}
	p.untold = untold
	if slow := p.whoIsSlow(); len(p.containers) != p.told || !slices.Equal(slow, p.slow) {
		p.told, p.slow = len(p.containers), slow
		task.Signal(p.changed)
	}
}

// whoIsSlow lists the containers that take the slow way.
func (p *Path) whoIsSlow() (all []SlowContainer) {
	for _, c := range p.containers {
		for _, a := range c.Addrs {
			why := p.whySlow(c, a)
			if _, ok := p.locals[a]; !ok && why == "" {
				why = "another container has the address, too"
				if err := p.untold[a]; err != nil {
					why = "it cannot be told to the programs: " + err.Error()
				}
			}
			if why != "" {
				all = append(all, SlowContainer{c.Index, a, why})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b SlowContainer) int { return a.Addr.Compare(b.Addr) })
	return all
}

func (p *Path) dropLocal(a netip.Addr) {
	if err := p.kernel.Locals.Delete(words(a)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		p.fail(fmt.Errorf("forget container %s: %w", a, err))
	}
	delete(p.locals, a)
}

// whySlow says why packets of a container's address go the slow way.
func (p *Path) whySlow(c Container, a netip.Addr) string {
	slow, known := p.judged[a]
	switch {
	case p.gone[c.Index]:
		return "its link is gone"
	case p.links[c.Index] != "":
		return p.links[c.Index]
	case slow || !known:
		return "a network policy may concern it"
	case p.failed[c.Index] != nil:
		return p.failed[c.Index].Error()
	}
	return ""
}
