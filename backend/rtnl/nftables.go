package rtnl

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// Table is a table of nftables.
type Table struct {
	Family uint8 // unix.NFPROTO_*
	Name   string
}

// Element is what is in a set of nftables. Keys are as the kernel has them: of a concatenation, each part is padded to four bytes.
type Element struct {
	Key  string
	Last string // the interval's last key, of a set of concatenations with intervals
	End  bool   // an interval of another set ends before Key
	Jump string // the chain that a verdict map leads to
	Data string // what another map leads to
}

// keyEnd is NFTA_SET_ELEM_KEY_END, since Linux 5.6.
const keyEnd = 10

// maxNest is how long an attribute gets before there is another message: its length has 16 bits, and an element less than 1 KiB.
const maxNest = 63 << 10

// Elements adds requests about elements of a set.
func (b *Batch) Elements(msg, flags uint16, t Table, set string, all iter.Seq[Element]) {
	nest := -1
	end := func() {
		if nest >= 0 {
			b.endNest(nest)
			b.End()
		}
	}
	for e := range all {
		if nest < 0 || len(b.buf)-nest > maxNest {
			end()
			b.BeginNft(msg, flags, t.Family)
			b.AttrString(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
			b.AttrString(unix.NFTA_SET_ELEM_LIST_SET, set)
			nest = b.beginNest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		}
		b.element(e)
	}
	end()
}

func (b *Batch) element(e Element) {
	b.Nest(unix.NFTA_LIST_ELEM, func() {
		b.data(unix.NFTA_SET_ELEM_KEY, e.Key)
		switch {
		case e.Last != "":
			b.data(keyEnd, e.Last)
		case e.End:
			b.Attr(unix.NFTA_SET_ELEM_FLAGS, binary.BigEndian.AppendUint32(nil, unix.NFT_SET_ELEM_INTERVAL_END))
		case e.Data != "":
			b.data(unix.NFTA_SET_ELEM_DATA, e.Data)
		case e.Jump != "":
			b.Nest(unix.NFTA_SET_ELEM_DATA, func() { b.Verdict(unix.NFT_JUMP, e.Jump) })
		}
	})
}

func (b *Batch) data(typ uint16, value string) {
	b.Nest(typ, func() { b.Attr(unix.NFTA_DATA_VALUE, []byte(value)) })
}

// Verdict adds data that is one: unix.NFT_JUMP or NFT_GOTO to a chain, unix.NFT_RETURN, or what becomes of the packet
// (0 is to drop it, 1 to accept it).
func (b *Batch) Verdict(code int32, chain string) {
	b.Nest(unix.NFTA_DATA_VERDICT, func() {
		b.Attr(unix.NFTA_VERDICT_CODE, binary.BigEndian.AppendUint32(nil, uint32(code)))
		if chain != "" {
			b.AttrString(unix.NFTA_VERDICT_CHAIN, chain)
		}
	})
}

// Elements reads what is in a set; unix.ENOENT if there is none.
func (c *Conn) Elements(b *Batch, t Table, set string) (all []Element, err error) {
	err = Consistent(func() error {
		all = nil
		b.Reset()
		b.BeginNft(unix.NFT_MSG_GETSETELEM, 0, t.Family)
		b.AttrString(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
		b.AttrString(unix.NFTA_SET_ELEM_LIST_SET, set)
		b.End()
		return c.DumpOnce(b, func() bool { return false }, func(body []byte) { all = append(all, ElementsOf(body)...) })
	})
	return all, err
}

// ElementsOf are those that a message tells of, by their keys.
func ElementsOf(body []byte) (all []Element) {
	for _, elements := range NftAttributes(body, unix.NFTA_SET_ELEM_LIST_ELEMENTS) {
		for _, element := range Nested(elements, unix.NFTA_LIST_ELEM) {
			all = append(all, Element{Key: value(element, unix.NFTA_SET_ELEM_KEY), Last: value(element, keyEnd)})
		}
	}
	return all
}

// value is a key of an element.
func value(element []byte, typ uint16) (key string) {
	for _, data := range Nested(element, typ) {
		for _, value := range Nested(data, unix.NFTA_DATA_VALUE) {
			key = string(value)
		}
	}
	return key
}

// nfgenmsgSize is how long the header is that stands before the attributes of every message of NETLINK_NETFILTER.
const nfgenmsgSize = 4

// NftAttributes are the attributes of a type in the body of a message of NETLINK_NETFILTER.
func NftAttributes(body []byte, typ uint16) [][]byte {
	return Nested(body[min(nfgenmsgSize, len(body)):], typ)
}

// Nested are the attributes of a type.
func Nested(b []byte, typ uint16) (all [][]byte) {
	for t, data := range Attributes(b) {
		if t == typ {
			all = append(all, data)
		}
	}
	return all
}

// Counters are the packets that a table's named counters have counted. There are none if there is no table.
func (c *Conn) Counters(b *Batch, t Table) (packets map[string]uint64, err error) {
	packets = map[string]uint64{}
	b.Reset()
	b.BeginNft(unix.NFT_MSG_GETOBJ, 0, t.Family)
	b.AttrString(unix.NFTA_OBJ_TABLE, t.Name)
	b.End()
	return packets, c.Dump(b, func(body []byte) {
		for _, name := range NftAttributes(body, unix.NFTA_OBJ_NAME) {
			for _, data := range NftAttributes(body, unix.NFTA_OBJ_DATA) {
				for _, n := range Nested(data, unix.NFTA_COUNTER_PACKETS) {
					if len(n) == 8 {
						packets[unix.ByteSliceToString(name)] = binary.BigEndian.Uint64(n)
					}
				}
			}
		}
	})
}

// AboutOf is what a message of nftables is about: the table, and the set if it is about elements; "" for what ends a
// transaction. All others have the table's name as attribute 1, and those about elements the set's as attribute 2, behind a
// header whose first byte is the family.
func AboutOf(h unix.NlMsghdr, body []byte) (t Table, set string) {
	if h.Type&0xff == unix.NFT_MSG_NEWGEN || len(body) < nfgenmsgSize {
		return Table{}, ""
	}
	t.Family = body[0]
	for typ, data := range Attributes(body[nfgenmsgSize:]) {
		switch typ {
		case unix.NFTA_SET_ELEM_LIST_TABLE:
			t.Name = unix.ByteSliceToString(data)
		case unix.NFTA_SET_ELEM_LIST_SET:
			set = unix.ByteSliceToString(data)
		}
		if set != "" {
			break
		}
	}
	return t, set
}
