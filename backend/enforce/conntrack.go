package enforce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Flow is a connection as policies see it: from who opened it to who accepted it, behind all translation of addresses.
type Flow struct {
	Src, Dst netip.Addr
	Proto    uint8  // IPPROTO_*
	Port     uint16 // of Dst; 0: the protocol has none
}

// Of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctGet         = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	ctDelete      = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	ctTupleOrig   = 1 // CTA_TUPLE_ORIG
	ctTupleReply  = 2
	ctProtoInfo   = 4 // CTA_PROTOINFO
	ctInfoTCP     = 1 // CTA_PROTOINFO_TCP
	ctTCPFlags    = 4 // CTA_PROTOINFO_TCP_FLAGS_ORIGINAL
	ctTCPLiberal  = 8 // IP_CT_TCP_FLAG_BE_LIBERAL: conntrack met it in the middle
	ctID          = 12
	ctZone        = 18
	ctTupleIP     = 1 // CTA_TUPLE_IP
	ctTupleProto  = 2
	ctTupleZone   = 3
	ctSourceV6    = 3 // CTA_IP_V6_SRC; for IPv4 1 and 2
	ctProtoNumber = 1 // CTA_PROTO_NUM
	ctSourcePort  = 2
)

// tuple is one direction of an entry of conntrack.
type tuple struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
}

// entry is one of conntrack, and what tells the kernel which.
type entry struct {
	orig, reply tuple
	which       []byte // attributes
	middle      bool   // conntrack has not seen how it began
}

// caller is a flow, and the port from which it comes.
type caller struct {
	Flow
	srcPort uint16
}

// connection is what is to end.
type connection struct {
	caller
	which []byte
}

// ephemeral is the first port of those that kernels choose for who opens connections (net.ipv4.ip_local_port_range).
const ephemeral = 32768

// justTracked is for how long after a bridge's traffic began to be tracked entries may be of connections that were there before.
const justTracked = time.Second

// flow is that of an entry. One that conntrack met in the middle may have been met in an answer: that is told by its ports. Of
// UDP there is no middle, and who opens it may choose its port: this is believed only while it is likely.
func (e entry) flow(recent bool) caller {
	if e.orig.sport < ephemeral && e.reply.sport >= ephemeral && (e.middle || e.orig.proto == unix.IPPROTO_UDP && recent) {
		return caller{Flow{e.reply.src, e.orig.src, e.orig.proto, e.orig.sport}, e.reply.sport}
	}
	return caller{Flow{e.orig.src, e.reply.src, e.orig.proto, e.reply.sport}, e.orig.sport}
}

// batchOfDeletes is how many entries are deleted at once.
const batchOfDeletes = 200

// Cut judges all connections there are, or those of only some addresses, and ends those that judge does not allow any more, with
// both ends left to find out. Connections that this host opened itself are not judged.
//
// With its entry deleted, what the opener sends is judged as new. What the other side sends on its own would be too, as if it
// were the opener, and might pass: so it is kept in the set of what was cut, until it stays silent. Of a connection that the
// opener may have again, later, it is an answer.
func (t *Table) Cut(ctx context.Context, judge func(Flow) (allowed bool), only []netip.Addr) (n int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	own, err := hostAddresses(t.ns)
	if err != nil {
		return 0, err
	}
	var denied []connection
	err = t.connections(func(e entry) {
		f := e.flow(time.Since(t.tracking) < justTracked)
		switch {
		case len(only) > 0 && !slices.Contains(only, f.Src) && !slices.Contains(only, f.Dst):
		case f.Src == f.Dst || own[f.Src]:
		case !judge(f.Flow):
			denied = append(denied, connection{f, slices.Clone(e.which)})
		}
	})
	if err != nil {
		return 0, fmt.Errorf("look at connections: %w", err)
	}
	if len(denied) == 0 {
		return 0, nil
	}
	if t.groups != nil { // else there is no table
		// So many that they are no more known as cut is no reason to let them go on.
		if err := t.putCut(denied); err != nil && !errors.Is(err, unix.ENFILE) {
			return 0, fmt.Errorf("cut connections: %w", err)
		}
	}
	for some := range slices.Chunk(denied, batchOfDeletes) {
		t.batch.Reset()
		for _, e := range some {
			t.batch.Begin(ctDelete, 0, nfgenmsg(rtnl.FamilyOf(e.Src)))
			t.batch.Raw(e.which)
			t.batch.End()
		}
		failed, err := t.conn.Exec(&t.batch, nil)
		if err != nil {
			return n, fmt.Errorf("cut connections: %w", err)
		}
		for _, f := range failed {
			if !errors.Is(f, unix.ENOENT) {
				return n, fmt.Errorf("cut a connection: %w", f)
			}
		}
		n += len(some)
	}
	return n, nil
}

// putCut has what answers in denied connections known as such.
func (t *Table) putCut(denied []connection) error {
	x := t.begin(t.table)
	for _, f := range families {
		x.add(per(cut, f), func(yield func(rtnl.Element) bool) {
			for _, e := range denied {
				if family(e.Src) != f || e.srcPort == 0 {
					continue
				}
				if !yield(cutElement(e.Dst, e.Src, e.Proto, e.Port, e.srcPort)) {
					return
				}
				// What its opener sends looks like an answer: see skeleton.
				if e.Proto == unix.IPPROTO_TCP && e.srcPort < ephemeral && e.Port >= ephemeral &&
					!yield(cutElement(e.Src, e.Dst, e.Proto, e.srcPort, e.Port)) {
					return
				}
			}
		})
	}
	return t.commit(x)
}

func cutElement(src, dst netip.Addr, proto uint8, sport, dport uint16) rtnl.Element {
	key := append(src.AsSlice(), dst.AsSlice()...)
	key = append(key, proto, 0, 0, 0)
	key = append(binary.BigEndian.AppendUint16(key, sport), 0, 0)
	key = append(binary.BigEndian.AppendUint16(key, dport), 0, 0)
	return rtnl.Element{Key: string(key)}
}

// nfgenmsg is the header of requests to ctnetlink.
func nfgenmsg(family uint8) [4]uint8 { return [4]uint8{family} }

// connections gives all entries to f, which must not keep what is in them.
func (t *Table) connections(f func(entry)) error {
	if err := t.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	t.batch.Reset()
	t.batch.Begin(ctGet, 0, nfgenmsg(unix.AF_UNSPEC))
	t.batch.End()
	return t.conn.DumpOnce(&t.batch, func() bool { return false }, func(body []byte) {
		if e, ok := parseEntry(body); ok {
			f(e)
		}
	})
}

func parseEntry(body []byte) (e entry, ok bool) {
	which := make([]byte, 0, 256)
	for typ, data := range rtnl.Attributes(body[min(4, len(body)):]) {
		switch typ {
		case ctTupleOrig:
			e.orig = parseTuple(data)
			which = appendAttr(which, typ|unix.NLA_F_NESTED, data)
		case ctTupleReply:
			e.reply = parseTuple(data)
		case ctProtoInfo:
			e.middle = inMiddle(data)
		case ctID, ctZone:
			which = appendAttr(which, typ, data)
		}
	}
	e.which = which
	return e, e.orig.src.IsValid() && e.reply.src.IsValid()
}

// inMiddle says of TCP whether its entry was made of a packet that does not begin a connection.
func inMiddle(info []byte) (yes bool) {
	for typ, tcp := range rtnl.Attributes(info) {
		for part, flags := range rtnl.Attributes(tcp) {
			yes = yes || typ == ctInfoTCP && part == ctTCPFlags && len(flags) > 0 && flags[0]&ctTCPLiberal != 0
		}
	}
	return yes
}

func appendAttr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(data)))
	b = append(binary.NativeEndian.AppendUint16(b, typ), data...)
	return append(b, make([]byte, rtnl.Align(len(b))-len(b))...)
}

func parseTuple(b []byte) (t tuple) {
	for typ, data := range rtnl.Attributes(b) {
		for part, value := range rtnl.Attributes(data) {
			switch {
			case typ == ctTupleIP && part%2 == 1: // of both families the source comes first
				t.src = rtnl.Addr(value)
			case typ == ctTupleIP:
				t.dst = rtnl.Addr(value)
			case typ == ctTupleProto && part == ctProtoNumber && len(value) == 1:
				t.proto = value[0]
			case typ == ctTupleProto && part == ctSourcePort && len(value) == 2:
				t.sport = binary.BigEndian.Uint16(value)
			case typ == ctTupleProto && part == ctSourcePort+1 && len(value) == 2:
				t.dport = binary.BigEndian.Uint16(value)
			}
		}
	}
	return t
}

// hostAddresses are this host's own.
func hostAddresses(ns netns.NsHandle) (map[netip.Addr]bool, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("look at this host's addresses: %w", err)
	}
	defer h.Close()
	all, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("look at this host's addresses: %w", err)
	}
	own := make(map[netip.Addr]bool, len(all))
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			own[ip.Unmap()] = true
		}
	}
	return own, nil
}
