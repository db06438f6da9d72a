package fastpath

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

const (
	// lookEvery is how often it is looked whether the programs are attached: of tcx the kernel tells nobody.
	lookEvery = 5 * time.Second
	// lastsFor is for how long classic filters do something without a daemon.
	lastsFor = 3 * lookEvery
)

// attachment holds a program on a link.
type attachment interface {
	// there says whether it still does.
	there() bool
	Close() error
}

// Run attaches the programs, and again where others detach them, until ctx ends; then traffic goes the slow way. It is to be
// called once.
func (p *Path) Run(ctx context.Context) error {
	conn, err := rtnl.Dial(p.cfg.Namespace, rtnl.AnswersSize, unix.RTNLGRP_LINK, unix.RTNLGRP_TC)
	if err != nil {
		return fmt.Errorf("fast path: %w", err)
	}
	defer conn.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := conn.Follow(ctx, &sync.Mutex{}, listener{p}); err != nil { // it locks for itself
			return fmt.Errorf("fast path: hear of links: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		attached := map[int]attachment{}
		defer p.detach(attached)
		look := time.NewTicker(lookEvery)
		defer look.Stop()
		for {
			p.attachAll(attached)
			select {
			case <-ctx.Done():
				return nil
			case <-look.C:
			case <-p.wake:
				time.Sleep(10 * time.Millisecond) // who changes links does so step by step
			}
		}
	})
	return group.Wait()
}

// listener wakes after what the kernel tells of links and their filters.
type listener struct{ *Path }

// Hear implements rtnl.Listener.
func (l listener) Hear(head unix.NlMsghdr, body []byte) {
	var h unix.IfInfomsg
	if rtnl.Header(body, &h); head.Type == unix.RTM_DELLINK && h.Family != unix.AF_BRIDGE {
		l.lose(int(h.Index))
	}
	task.Signal(l.wake)
}

// Lose implements rtnl.Listener.
func (l listener) Lose() { task.Signal(l.wake) }

// lose has a container's link that is gone stay so: what comes with its index is another, until SetContainers says so.
func (p *Path) lose(index int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.ContainsFunc(p.containers, func(c Container) bool { return c.Index == index }) {
		p.gone[index] = true
		p.bringLocals()
	}
}

// attachAll attaches what is to be attached and is not, and detaches all else.
func (p *Path) attachAll(attached map[int]attachment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want, of, bridges := map[int]*ebpf.Program{}, map[int]*Container{}, map[int]netlink.Link{}
	for i, c := range p.containers {
		of[c.Index] = &p.containers[i]
		want[c.Index] = p.kernel.FromContainer
		if _, known := bridges[c.Bridge]; !known && c.Bridge != 0 {
			bridges[c.Bridge], _ = p.netlink.LinkByIndex(c.Bridge) // nil: there is none
		}
	}
	if p.own.Underlay != 0 {
		want[p.own.Underlay] = p.kernel.FromWire
	}
	for index, a := range attached {
		if want[index] == nil || !a.there() {
			a.Close()
			delete(attached, index)
		}
	}
	failed := map[int]error{}
	for index, program := range want {
		l, err := p.netlink.LinkByIndex(index)
		if err == nil {
			err = carries(l, of[index], bridges)
		}
		if err == nil && attached[index] == nil {
			if attached[index], err = p.attach(l, program); err != nil {
				delete(attached, index)
				err = fmt.Errorf("not attached: %w", err)
			}
		}
		if err != nil {
			failed[index] = err
		}
	}
	p.conclude(attached, failed)
}

// conclude takes in which links are not attached.
func (p *Path) conclude(attached map[int]attachment, failed map[int]error) {
	for index, err := range failed {
		if had := p.failed[index]; had == nil || had.Error() != err.Error() {
			p.cfg.Log.Warn("link takes the slow way", "link", index, "err", err)
		}
	}
	if p.failed = failed; anyClassic(attached) {
		p.until = monotonic() + uint64(lastsFor)
	}
	p.attachedTo = len(attached)
	p.lookAtKernel()
	p.bringLocals()
	if p.write(); len(p.lost) > 0 {
		p.bringPeers(maps.Keys(maps.Clone(p.lost)))
	}
}

// carries says why packets must not be fast by a link, a container's unless nil: the slow way would not have them, or the
// programs cannot. bridges are those that containers are to be on.
func carries(l netlink.Link, c *Container, bridges map[int]netlink.Link) error {
	up := func(l netlink.Link) bool { return l != nil && l.Attrs().Flags&net.FlagUp != 0 }
	switch a := l.Attrs(); {
	case !up(l):
		return fmt.Errorf("%s is down", a.Name)
	case a.EncapType != "ether":
		return fmt.Errorf("%s has no Ethernet headers (%s)", a.Name, a.EncapType)
	case c != nil && l.Type() != "veth":
		return fmt.Errorf("%s is a %s, no veth", a.Name, l.Type())
	case c != nil && c.Bridge != 0 && c.Bridge != a.MasterIndex:
		return fmt.Errorf("%s is not on its bridge", a.Name)
	case c != nil && c.Bridge != 0 && !up(bridges[c.Bridge]):
		return fmt.Errorf("the bridge of %s is down", a.Name)
	}
	return nil
}

// attach attaches a program to a link: by what ends with this process, if the kernel has it (6.6).
func (p *Path) attach(l netlink.Link, program *ebpf.Program) (a attachment, err error) {
	index := l.Attrs().Index
	if !p.cfg.noTCX {
		err = rtnl.InNetns(p.cfg.Namespace, func() error {
			t, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: program, Attach: ebpf.AttachTCXIngress, Anchor: link.Tail()})
			a = tcx{t}
			return err
		})
		if err == nil || !errors.Is(err, ebpf.ErrNotSupported) {
			return a, err
		}
	}
	return newClassic(p.netlink, l, program)
}

func (p *Path) detach(attached map[int]attachment) {
	for _, a := range attached {
		a.Close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = "the daemon ends"
	p.write()
}

// tcx is a link of BPF's that holds a program.
type tcx struct{ link.Link }

func (t tcx) there() bool {
	info, err := t.Info()
	return err == nil && info.TCX() != nil && info.TCX().Ifindex != 0
}

// monotonic is the time that classic filters go by.
func monotonic() uint64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return uint64(t.Nano())
}

// jiffies is how many of them a second has: it is their clock's resolution.
func jiffies() uint32 {
	var t unix.Timespec
	if unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &t) != nil || t.Nano() == 0 {
		return 100
	}
	return uint32(time.Second.Nanoseconds() / t.Nano())
}
