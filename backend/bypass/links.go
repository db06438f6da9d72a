package bypass

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Parents of filters of what comes by a link, and of what leaves by it (linux/pkt_sched.h).
const (
	ingressFilter = 0xfffffff2
	egressFilter  = 0xfffffff3
)

// linkSeen is what a link has.
type linkSeen struct {
	name    string
	bridged bool
	gone    bool
	qdisc   string // of what it sends; "": none
	in, out string // a filter or program of others' on what comes and what leaves
}

// why says what would be passed by on a link where the fast path comes and goes.
func (l linkSeen) why() string {
	switch {
	case l.gone:
		return "the link is gone"
	case l.qdisc != "noqueue" && l.qdisc != "noop": // the last of a link that is down
		return fmt.Sprintf("qdisc %s on %s shapes what it sends", l.qdisc, l.name)
	case l.in != "":
		return fmt.Sprintf("%s on %s sees what comes by it", l.in, l.name)
	case l.out != "":
		return fmt.Sprintf("%s on %s sees what it sends", l.out, l.name)
	}
	return ""
}

// traffic looks at links, in one namespace.
type traffic struct {
	ns    netns.NsHandle
	conn  *rtnl.Conn
	batch rtnl.Batch
}

// look looks at links by index, at a cost that grows with their number alone.
func (t *traffic) look(indexes []int, programs []uint32) (map[int]linkSeen, error) {
	all := make(map[int]linkSeen, len(indexes))
	for some := range slices.Chunk(indexes, rtnl.BatchSize) {
		if err := t.heads(some, all); err != nil {
			return nil, err
		}
	}
	for index, l := range all {
		var err error
		if l.in, err = t.filters(index, ingressFilter, programs); err == nil {
			l.out, err = t.filters(index, egressFilter, programs)
		}
		if err != nil {
			return nil, fmt.Errorf("filters of link %s: %w", l.name, err)
		}
		all[index] = l
	}
	return all, rtnl.InNetns(t.ns, func() error {
		for index, l := range all {
			for typ, found := range map[ebpf.AttachType]*string{ebpf.AttachTCXIngress: &l.in, ebpf.AttachTCXEgress: &l.out} {
				id, err := foreignProgram(index, typ, programs)
				if err != nil {
					return fmt.Errorf("tc programs of link %s: %w", l.name, err)
				}
				if id != 0 && *found == "" {
					*found = fmt.Sprintf("tc program %d", id)
				}
			}
			all[index] = l
		}
		return nil
	})
}

// heads reads names and qdiscs. To ask for a qdisc itself would tell every listener of it, before Linux 6.8.
func (t *traffic) heads(indexes []int, all map[int]linkSeen) error {
	t.batch.Reset()
	for _, index := range indexes {
		t.batch.Begin(unix.RTM_GETLINK, 0, unix.IfInfomsg{Index: int32(index)})
		t.batch.AttrU32(unix.IFLA_EXT_MASK, rtnl.SkipStats)
		t.batch.End()
	}
	failed, err := t.conn.Exec(&t.batch, func(i int, body []byte) { all[indexes[i]] = headOf(body) })
	for i := range failed {
		all[indexes[i]] = linkSeen{gone: true}
	}
	return err
}

// tcMsg is struct tcmsg.
type tcMsg struct {
	Family         uint8
	_              [3]uint8
	Index          int32
	Handle, Parent uint32
	Info           uint32
}

func headOf(body []byte) (l linkSeen) {
	for typ, data := range rtnl.Attributes(rtnl.Header(body, &unix.IfInfomsg{})) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(data)
		case unix.IFLA_QDISC:
			l.qdisc = unix.ByteSliceToString(data)
		case unix.IFLA_MASTER:
			l.bridged = true
		}
	}
	return l
}

func kindOf(body []byte) string {
	for typ, data := range rtnl.Attributes(rtnl.Header(body, &tcMsg{})) {
		if typ == unix.TCA_KIND {
			return unix.ByteSliceToString(data)
		}
	}
	return ""
}

// filters tells the kind of a filter that is none of ours.
func (t *traffic) filters(index int, parent uint32, programs []uint32) (found string, err error) {
	t.batch.Reset()
	t.batch.Begin(unix.RTM_GETTFILTER, 0, tcMsg{Index: int32(index), Parent: parent})
	t.batch.End()
	err = t.conn.Dump(&t.batch, func(body []byte) {
		var head tcMsg
		kind, ours := kindOf(body), false
		for typ, data := range rtnl.Attributes(rtnl.Header(body, &head)) {
			if typ != unix.TCA_OPTIONS || kind != "bpf" {
				continue
			}
			for _, id := range rtnl.Nested(data, nl.TCA_BPF_ID) {
				ours = ours || len(id) == 4 && slices.Contains(programs, binary.NativeEndian.Uint32(id))
			}
		}
		if empty := kind == "bpf" && head.Handle == 0; !ours && !empty && head.Index == int32(index) {
			found = "filter " + kind
		}
	})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // the link, or the qdisc, is gone meanwhile
	}
	return found, err
}

// foreignProgram is the id of a tcx program on a link that is none of ours; 0: there is none, or the kernel knows no such (before 6.6).
func foreignProgram(index int, where ebpf.AttachType, ours []uint32) (id uint32, err error) {
	attached, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: where})
	switch {
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return 0, nil
	case err != nil:
		return 0, err
	}
	for _, p := range attached.Programs {
		if !slices.Contains(ours, uint32(p.ID)) {
			return uint32(p.ID), nil
		}
	}
	return 0, nil
}
