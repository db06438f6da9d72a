package enforce

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// Shown is how the table gets a bridge's traffic.
type Shown struct {
	Begun  bool // it did not before: what its containers are connected by is tracked from now on
	Routed bool // it is routed: the kernel has no br_netfilter
}

// Bridge has the traffic of a bridge pass the table, or no more. It is routed where the kernel has no br_netfilter. The error is
// pending.ErrNoBridgeNetfilter if the kernel cannot do that either.
func (t *Table) Bridge(name string, on bool) (shown Shown, err error) {
	if t.common != nil {
		if shown, err = t.common.all.Bridge(name, on); shown.Begun {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.tracking = time.Now()
		}
		return shown, err
	}
	h, err := netlink.NewHandleAt(t.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return shown, fmt.Errorf("bridge %s: %w", name, err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return shown, fmt.Errorf("bridge %s: %w", name, err)
	}
	index := link.Attrs().Index
	t.mu.Lock()
	defer t.mu.Unlock()
	seen, err := t.isSeen(index)
	if err != nil {
		return shown, err
	}
	before := t.shown[index]
	t.shown[index] = on
	switch err = pending.BridgeIn(t.ns, index, on); {
	case err == nil && !t.unrouted: // the module came since
		t.unrouted, t.routes = true, false
		_, err = remove(t.conn, pending.Routes)
	case errors.Is(err, pending.ErrNoBridgeNetfilter):
		if shown.Routed, err = on, nil; on || t.routes {
			err = t.route()
		}
	}
	if err != nil {
		t.shown[index] = before
		return Shown{}, err
	}
	if shown.Begun = on && !(before && (seen || shown.Routed)); shown.Begun {
		t.tracking = time.Now()
	}
	return shown, nil
}

// isSeen says whether the kernel shows the traffic of a bridge to nftables, whoever has told it so.
func (t *Table) isSeen(index int) (yes bool, err error) {
	c, err := rtnl.Dial(t.ns, rtnl.AnswersSize)
	if err != nil {
		return false, err
	}
	defer c.Close()
	var b rtnl.Batch
	b.Begin(unix.RTM_GETLINK, 0, unix.IfInfomsg{Index: int32(index)})
	b.End()
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return false, err
	}
	failed, err := c.Exec(&b, func(_ int, body []byte) {
		for typ, info := range rtnl.Attributes(body[min(unix.SizeofIfInfomsg, len(body)):]) {
			for part, data := range rtnl.Attributes(info) {
				for what, value := range rtnl.Attributes(data) {
					of := typ == unix.IFLA_LINKINFO && part == unix.IFLA_INFO_DATA
					yes = yes || of && what == unix.IFLA_BR_NF_CALL_IPTABLES && len(value) > 0 && value[0] != 0
				}
			}
		}
	})
	return yes, cmp.Or(err, failed[0])
}

// holdRoutes has the table there that the plugin adds ports to, where that is the way. The caller holds the lock.
func (t *Table) holdRoutes() {
	if pending.Sees(t.ns) {
		return
	}
	if err := t.route(); err != nil {
		t.log.Error("containers of one bridge reach each other past policies", "err", err)
	}
}

// route has the ports of bridges that are to be shown, and no others, send up to this host what they send each other. The caller
// holds the lock.
func (t *Table) route() error {
	if err := t.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	var before []int // of a daemon before, whose bridges are to be told yet
	if !t.routes {
		there, _ := t.conn.Elements(&t.batch, pending.Routes, pending.RoutedPorts) // as a rule, there is no such table
		for _, e := range there {
			before = append(before, int(binary.NativeEndian.Uint32([]byte(e.Key))))
		}
	}
	macs, err := pending.PortsOf(t.ns, t.shown, before...)
	if err != nil {
		return err
	}
	priority, err := t.nextPriority(pending.Routes)
	if err == nil {
		x := t.begin(pending.Routes)
		if t.routes {
			x.flush(pending.RoutedUp)
			x.flush(pending.RoutedPorts)
		} else {
			x.anew("overlayd")
			x.routing(priority)
		}
		pending.Route(x.b, macs)
		err = t.commit(x)
	}
	if err != nil {
		t.routes = false
		return fmt.Errorf("%w; nor can nftables route it: %w", pending.ErrNoBridgeNetfilter, err)
	}
	if !t.routes {
		t.log.Warn("br_netfilter is not there: containers of one bridge are routed to each other where policies isolate")
	}
	t.routes, t.unrouted = true, false
	return nil
}

// Fields of frames.
var (
	ethertype = field{nft: 10, size: 2, meta: unix.NFT_META_PROTOCOL}
	iif       = field{nft: 20, size: 4, meta: unix.NFT_META_IIF}
	oif       = field{nft: 20, size: 4, meta: unix.NFT_META_OIF}
	ether     = field{nft: 9, size: 6}
)

// ethertypes are the families as frames have them.
var ethertypes = map[byte][]byte{4: {0x08, 0x00}, 6: {0x86, 0xdd}}

// routing adds what is always there. A frame for another than this host gets the port's MAC, by which the bridge finds that it is
// for this host, which routes it: past the table of policies, and with a hop more. Whoever sent it knows nothing of that: ARP and
// ND go on between the ports, so that no neighbour has to be learnt anew when it begins or ends. What is for many comes to this
// host as before, and to no other port; so does what comes by a port that is not known yet.
func (x *transaction) routing(priority int32) {
	// The hooks of bridges have the same numbers.
	x.hook("prerouting", unix.NF_INET_PRE_ROUTING, priority)
	x.hook("forward", unix.NF_INET_FORWARD, priority)
	x.hook("output", unix.NF_INET_LOCAL_OUT, priority)
	x.chain(many)
	x.set(pending.RoutedPorts, 0, iif)
	x.mapTo(ether, pending.RoutedUp, unix.NFT_SET_MAP, iif)
	others := is(pkttype, unix.PACKET_OTHERHOST)
	x.rule("prerouting", false, others, is(ethertype, ethertypes[4]...), up())
	x.rule("prerouting", false, others, icmp6(133, 137), verdict(accept, ""))
	x.rule("prerouting", false, others, is(ethertype, ethertypes[6]...), up())
	for _, port := range []field{iif, oif} {
		x.rule("forward", false, in(pending.RoutedPorts, port), verdict(unix.NFT_GOTO, many))
	}
	x.rule(many, false, icmp6(130, 137), verdict(accept, ""))
	x.rule(many, false, icmp6(143, 143), verdict(accept, ""))
	for _, f := range families {
		x.rule(many, false, is(ethertype, ethertypes[f]...), verdict(drop, ""))
	}
	// No redirect to the way that is closed.
	x.rule("output", false, icmp6(137, 137), in(pending.RoutedPorts, oif), verdict(drop, ""))
	x.rule("output", false, is(ethertype, ethertypes[4]...), is(l4proto, unix.IPPROTO_ICMP), is(icmpType, 5), in(pending.RoutedPorts, oif), verdict(drop, ""))
}

var icmpType = field{size: 1, base: unix.NFT_PAYLOAD_TRANSPORT_HEADER}

// icmp6 goes on for types of ICMPv6 in a frame.
func icmp6(first, last byte) expr {
	return all(is(ethertype, ethertypes[6]...), is(l4proto, unix.IPPROTO_ICMPV6), between(icmpType, []byte{first}, []byte{last}))
}

// up makes a frame this host's.
func up() expr {
	return all(load(iif), named("lookup", func(b *rtnl.Batch) {
		b.AttrString(unix.NFTA_LOOKUP_SET, pending.RoutedUp)
		b.Attr(unix.NFTA_LOOKUP_SREG, be32(register))
		b.Attr(unix.NFTA_LOOKUP_DREG, be32(register))
	}), named("payload", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_PAYLOAD_SREG, be32(register))
		b.Attr(unix.NFTA_PAYLOAD_BASE, be32(unix.NFT_PAYLOAD_LL_HEADER))
		b.Attr(unix.NFTA_PAYLOAD_OFFSET, be32(0))
		b.Attr(unix.NFTA_PAYLOAD_LEN, be32(ether.size))
	}), named("immediate", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_IMMEDIATE_DREG, be32(register))
		b.Nest(unix.NFTA_IMMEDIATE_DATA, func() { b.Attr(unix.NFTA_DATA_VALUE, []byte{unix.PACKET_HOST}) })
	}), named("meta", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_META_KEY, be32(unix.NFT_META_PKTTYPE))
		b.Attr(unix.NFTA_META_SREG, be32(register))
	}), verdict(accept, ""))
}

// flush empties a set.
func (x *transaction) flush(set string) {
	x.b.BeginNft(unix.NFT_MSG_DELSETELEM, 0, x.table.Family)
	x.b.AttrString(unix.NFTA_SET_ELEM_LIST_TABLE, x.table.Name)
	x.b.AttrString(unix.NFTA_SET_ELEM_LIST_SET, set)
	x.b.End()
}
