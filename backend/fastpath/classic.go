package fastpath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// What a classic filter is ours by. It stands behind all that others have.
const (
	ourPriority = 0xfffe
	ourHandle   = 0x6f76 // "ov"
	ourName     = "overlayd"
)

// classic is a filter of tc, as kernels before 6.6 have it. It outlives this process: Own.until ends what it does.
type classic struct {
	netlink *netlink.Handle
	link    netlink.Link
	id      int
}

// newClassic attaches program to a link's ingress, beside what others have there.
func newClassic(nl *netlink.Handle, l netlink.Link, program *ebpf.Program) (attachment, error) {
	info, err := program.Info()
	if err != nil {
		return nil, err
	}
	id, _ := info.ID()
	c := &classic{netlink: nl, link: l, id: int(id)}
	if err := nl.QdiscAdd(clsact(l)); err != nil && !errors.Is(err, unix.EEXIST) { // what is there will do
		return nil, fmt.Errorf("add a clsact qdisc: %w", err)
	}
	f := ourFilter(l)
	f.Fd, f.Name, f.DirectAction = program.FD(), ourName, true
	if err := nl.FilterReplace(f); err != nil {
		c.Close()
		return nil, fmt.Errorf("add a filter: %w", err)
	}
	return c, nil
}

func clsact(l netlink.Link) netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func ourFilter(l netlink.Link) *netlink.BpfFilter {
	return &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: ourHandle, Priority: ourPriority, Protocol: unix.ETH_P_ALL,
	}}
}

func (c *classic) there() bool {
	filters, err := c.netlink.FilterList(c.link, netlink.HANDLE_MIN_INGRESS)
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Priority == ourPriority && b.Handle == ourHandle {
			return b.Id == c.id
		}
	}
	return err != nil // unknown
}

// Close implements attachment. The qdisc stays, whoever made it: a link drops packets for a moment, all its traffic's, whenever
// one is added or removed (qdisc_graft deactivates it), and one without filters does nothing.
func (c *classic) Close() error { return c.netlink.FilterDel(ourFilter(c.link)) }

// anyClassic says whether any program is attached in the old way.
func anyClassic(attached map[int]attachment) bool {
	for _, a := range attached {
		if _, ok := a.(*classic); ok {
			return true
		}
	}
	return false
}

// sweep removes filters that a daemon left which crashed.
func sweep(ns netns.NsHandle) error {
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	links, err := nl.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		filters, _ := nl.FilterList(l, netlink.HANDLE_MIN_INGRESS)
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok && b.Priority == ourPriority && b.Handle == ourHandle {
				err = errors.Join(err, nl.FilterDel(ourFilter(l)))
			}
		}
	}
	return err
}
