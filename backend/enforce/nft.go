package enforce

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// transaction collects what is done to one table at once.
type transaction struct {
	b     *rtnl.Batch
	table rtnl.Table
	sets  uint32 // that were made
}

// be32 and be64 are numbers as nftables has them.
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// Verdicts of a packet.
const (
	drop   = 0
	accept = 1
)

// about adds a request whose first attribute is the name of the table, as that of all has.
func (x *transaction) about(msg, flags uint16, rest func()) {
	x.b.BeginNft(msg, flags, x.table.Family)
	x.b.AttrString(unix.NFTA_TABLE_NAME, x.table.Name)
	rest()
	x.b.End()
}

// anew makes the table, with nothing in it, in place of one that may be there.
func (x *transaction) anew(comment string) {
	x.gone()
	x.about(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, func() { x.b.Attr(tableUserdata, userdata(comment)) })
}

// gone removes the table, of which there may be none.
func (x *transaction) gone() {
	x.about(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, func() {})
	x.about(unix.NFT_MSG_DELTABLE, 0, func() {})
}

// tableUserdata is NFTA_TABLE_USERDATA, since Linux 5.10: before, it is not looked at.
const tableUserdata = 6

// userdata is a comment as nft writes and prints it.
func userdata(comment string) []byte {
	return append(append([]byte{0, byte(len(comment) + 1)}, comment...), 0)
}

// counter makes a named counter that begins with packets.
func (x *transaction) counter(name string, packets uint64) {
	x.about(unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE, func() {
		x.b.AttrString(unix.NFTA_OBJ_NAME, name)
		x.b.Attr(unix.NFTA_OBJ_TYPE, be32(unix.NFT_OBJECT_COUNTER))
		x.b.Nest(unix.NFTA_OBJ_DATA, func() {
			x.b.Attr(unix.NFTA_COUNTER_BYTES, be64(0))
			x.b.Attr(unix.NFTA_COUNTER_PACKETS, be64(packets))
		})
	})
}

// set makes one whose key is of fields. Flags are unix.NFT_SET_*; of a map (NFT_SET_MAP) to verdicts. Elements of one with a
// timeout (NFT_SET_TIMEOUT) last cutLasts.
func (x *transaction) set(name string, flags uint32, fields ...field) {
	x.mapTo(field{}, name, flags, fields...)
}

// mapTo makes a set, or a map to values of a field.
func (x *transaction) mapTo(value field, name string, flags uint32, fields ...field) {
	x.sets++
	var typ, size uint32
	for _, f := range fields {
		typ = typ<<6 | f.nft
		size += f.size
		if len(fields) > 1 {
			size = uint32(rtnl.Align(int(size)))
		}
	}
	x.about(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, func() {
		x.b.AttrString(unix.NFTA_SET_NAME, name)
		x.b.Attr(unix.NFTA_SET_FLAGS, be32(flags))
		x.b.Attr(unix.NFTA_SET_KEY_TYPE, be32(typ))
		x.b.Attr(unix.NFTA_SET_KEY_LEN, be32(size))
		x.b.Attr(unix.NFTA_SET_ID, be32(x.sets))
		switch {
		case value.size > 0:
			x.b.Attr(unix.NFTA_SET_DATA_TYPE, be32(value.nft))
			x.b.Attr(unix.NFTA_SET_DATA_LEN, be32(value.size))
		case flags&unix.NFT_SET_MAP != 0:
			x.b.Attr(unix.NFTA_SET_DATA_TYPE, be32(unix.NFT_DATA_VERDICT))
		}
		if flags&unix.NFT_SET_TIMEOUT != 0 {
			x.b.Attr(unix.NFTA_SET_TIMEOUT, be64(uint64(cutLasts.Milliseconds())))
		}
	})
}

// add and remove are about elements of a set.
func (x *transaction) add(set string, all iter.Seq[rtnl.Element]) {
	x.b.Elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, x.table, set, all)
}

func (x *transaction) remove(set string, all iter.Seq[rtnl.Element]) {
	x.b.Elements(unix.NFT_MSG_DELSETELEM, 0, x.table, set, all)
}

// drop removes an object, by the request and the attribute for its name.
func (x *transaction) drop(msg, typ uint16, name string) {
	x.about(msg, 0, func() { x.b.AttrString(typ, name) })
}

func (x *transaction) chain(name string) {
	x.about(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, func() { x.b.AttrString(unix.NFTA_CHAIN_NAME, name) })
}

// hook makes a chain that packets meet: what it lets through passes.
func (x *transaction) hook(name string, hook uint32, priority int32) {
	x.about(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, func() {
		x.b.AttrString(unix.NFTA_CHAIN_NAME, name)
		x.b.Nest(unix.NFTA_CHAIN_HOOK, func() {
			x.b.Attr(unix.NFTA_HOOK_HOOKNUM, be32(hook))
			x.b.Attr(unix.NFTA_HOOK_PRIORITY, be32(uint32(priority)))
		})
		x.b.Attr(unix.NFTA_CHAIN_POLICY, be32(accept))
		x.b.AttrString(unix.NFTA_CHAIN_TYPE, "filter")
	})
}

// rule appends one to a chain, or puts it first.
func (x *transaction) rule(chain string, first bool, parts ...expr) {
	flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_APPEND)
	if first {
		flags = unix.NLM_F_CREATE
	}
	x.about(unix.NFT_MSG_NEWRULE, flags, func() {
		x.b.AttrString(unix.NFTA_RULE_CHAIN, chain)
		x.b.Nest(unix.NFTA_RULE_EXPRESSIONS, func() {
			for _, p := range parts {
				p(x.b)
			}
		})
	})
}
