package kernel

import (
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// Of what others do, all is heard, or all but routes that have nothing to do with ours.
func TestFilters(t *testing.T) {
	t.Parallel()
	const route, link, address, neighbour = unix.RTM_NEWROUTE, unix.RTM_NEWLINK, unix.RTM_NEWADDR, unix.RTM_NEWNEIGH
	for _, test := range []struct {
		script string
		typ    uint16
		heard  bool // by who hears no routes
	}{
		{"ip route add $dst2 via $via dev eth0 proto bird", route, false},
		{"ip route add $dst2 via $via dev eth0 proto bird metric 65535", route, false},
		{"ip route add $dst2 via $via dev eth0 proto bird metric 131072", route, false},
		{"ip route add $dst2 via $via dev eth0 proto bird metric $((1 << 24 | 65536))", route, false},
		{"ip route add $dst2 proto bird nexthop via $via dev eth0 nexthop via $via2 dev eth0", route, false},
		{"ip route add $dst2 via $via dev eth0 proto bird metric 65536", route, true},
		{"ip route add $dst2 via $via dev eth0 proto bird metric 131071", route, true},
		{"ip route add $dst2 via $via dev eth0 metric $metric", route, true},
		{"ip route add $dst2 via $via dev eth0 proto 111", route, true},
		{"ip route add blackhole $dst2 proto 111", route, true},
		{"ip link set eth0 mtu 1400", link, true},
		{"ip address add $via dev eth0", address, true},
		{"ip neighbour add $via lladdr 02:00:00:00:00:01 dev eth0", neighbour, true},
		{"ip link add vx0 type vxlan id 9 dstport 9 remote $via && bridge fdb add 02:00:00:00:00:01 dev vx0 dst $via", neighbour, true},
	} {
		t.Run(test.script, func(t *testing.T) {
			t.Parallel()
			eachFamily(t, func(t *testing.T, o overlay) {
				ns := testHost(t)
				all := listener(t, ns, hearOthers)
				few := listener(t, ns, hearNoRoutes)
				nstest.Sh(t, ns, variables(o)+test.script)
				if !heard(t, all, test.typ) {
					t.Error("heard nothing of others")
				}
				if got := heard(t, few, test.typ); got != test.heard {
					t.Errorf("heard: %v, want %v", got, test.heard)
				}
			})
		})
	}
}

func TestFiltersDropOwn(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		c, err := rtnl.Dial(ns, rtnl.AnswersSize)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all := listener(t, ns, func(uint32) []unix.SockFilter { return hearOthers(c.Port) })
		few := listener(t, ns, func(uint32) []unix.SockFilter { return hearNoRoutes(c.Port) })
		nstest.Sh(t, ns, variables(o)+"ip link add vx0 type vxlan id 9 dstport 9 remote $via")
		var b rtnl.Batch
		for _, e := range []entry{
			Route{Dst: o.subnet(1), Via: o.hostgw(8), Link: "eth0"},
			Neighbour{Link: "vx0", IP: o.subnet(1).Addr(), MAC: peerMAC(1)},
			FDB{Link: "vx0", MAC: peerMAC(1), Dst: o.vtep(1)},
			FDB{Link: "vx0", MAC: peerMAC(1), Dst: o.vtep(2)}, // in place of the last
		} {
			l, err := linkByName(c, new(rtnl.Batch), e.link())
			if err != nil {
				t.Fatal(err)
			}
			e.encode(&b, put, l.index)
		}
		if failed, err := c.Exec(&b, nil); len(failed) > 0 || err != nil {
			t.Fatal(failed, err)
		}
		for _, typ := range []uint16{unix.RTM_NEWROUTE, unix.RTM_NEWNEIGH} {
			if heard(t, all, typ) || heard(t, few, typ) {
				t.Errorf("heard of our own doing, message type %d", typ)
			}
		}
	})
}

// listener hears of what happens in ns through a filter.
func listener(t *testing.T, ns netns.NsHandle, filter func(own uint32) []unix.SockFilter) *rtnl.Conn {
	t.Helper()
	c, err := rtnl.Dial(ns, rtnl.EventsSize, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Attach(filter(c.Port)); err != nil {
		t.Fatal(err)
	}
	return c
}

// heard tells whether messages of a type wait in the socket, which it empties; routes that the kernel makes do not count.
func heard(t *testing.T, c *rtnl.Conn, typ uint16) bool {
	t.Helper()
	l := &listening{t: t, typ: typ}
	c.Drain(l)
	return l.found
}

type listening struct {
	t     *testing.T
	typ   uint16
	found bool
}

func (l *listening) Hear(h unix.NlMsghdr, body []byte) {
	typ := h.Type
	l.found = l.found || typ == l.typ && (typ != unix.RTM_NEWROUTE || body[5] != unix.RTPROT_KERNEL)
}

func (l *listening) Lose() { l.t.Error("something was lost") }
