package enforce

import (
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// expr is an expression of a rule, or several. All rules are such that nft prints them, and reads what it prints.
type expr func(*rtnl.Batch)

// field is a part of a packet. In keys each has four bytes, or sixteen.
type field struct {
	nft    uint32 // the number of its type, for nft to print it
	size   uint32
	family byte // 4, 6; 0: of both
	// Where it is: in the packet, or what meta knows.
	base, offset uint32
	meta         uint32
}

// The fields. The types are those of nft's enum datatypes.
var (
	saddr4  = field{nft: 7, size: 4, family: 4, base: unix.NFT_PAYLOAD_NETWORK_HEADER, offset: 12}
	daddr4  = field{nft: 7, size: 4, family: 4, base: unix.NFT_PAYLOAD_NETWORK_HEADER, offset: 16}
	saddr6  = field{nft: 8, size: 16, family: 6, base: unix.NFT_PAYLOAD_NETWORK_HEADER, offset: 8}
	daddr6  = field{nft: 8, size: 16, family: 6, base: unix.NFT_PAYLOAD_NETWORK_HEADER, offset: 24}
	sport   = field{nft: 13, size: 2, base: unix.NFT_PAYLOAD_TRANSPORT_HEADER}
	dport   = field{nft: 13, size: 2, base: unix.NFT_PAYLOAD_TRANSPORT_HEADER, offset: 2}
	l4proto = field{nft: 12, size: 1, meta: unix.NFT_META_L4PROTO}
	nfproto = field{nft: 2, size: 1, meta: unix.NFT_META_NFPROTO}
	pkttype = field{nft: 22, size: 1, meta: unix.NFT_META_PKTTYPE}
	iifkind = field{nft: 41, size: unix.IFNAMSIZ, meta: 26} // NFT_META_IIFKIND
	oifkind = field{nft: 41, size: unix.IFNAMSIZ, meta: 27} // NFT_META_OIFKIND
)

// source and destination are the addresses of a family.
func source(family byte) field {
	if family == 4 {
		return saddr4
	}
	return saddr6
}

func destination(family byte) field {
	if family == 4 {
		return daddr4
	}
	return daddr6
}

// nfprotos are the families as the kernel numbers them.
var nfprotos = map[byte]byte{4: unix.NFPROTO_IPV4, 6: unix.NFPROTO_IPV6}

// register is the first, of four bytes; all expressions begin there.
const register = unix.NFT_REG32_00

// named is an expression of the kernel's.
func named(name string, data func(b *rtnl.Batch)) expr {
	return func(b *rtnl.Batch) {
		b.Nest(unix.NFTA_LIST_ELEM, func() {
			b.AttrString(unix.NFTA_EXPR_NAME, name)
			b.Nest(unix.NFTA_EXPR_DATA, func() { data(b) })
		})
	}
}

// load puts fields one behind the other, and ends the rule for packets of another family.
func load(fields ...field) expr {
	return func(b *rtnl.Batch) {
		for _, f := range fields {
			if f.family != 0 {
				is(nfproto, nfprotos[f.family])(b)
				break
			}
		}
		to := uint32(register)
		for _, f := range fields {
			f.load(to)(b)
			to += (f.size + 3) / 4
		}
	}
}

func (f field) load(to uint32) expr {
	if f.meta != 0 {
		return named("meta", func(b *rtnl.Batch) {
			b.Attr(unix.NFTA_META_DREG, be32(to))
			b.Attr(unix.NFTA_META_KEY, be32(f.meta))
		})
	}
	return named("payload", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_PAYLOAD_DREG, be32(to))
		b.Attr(unix.NFTA_PAYLOAD_BASE, be32(f.base))
		b.Attr(unix.NFTA_PAYLOAD_OFFSET, be32(f.offset))
		b.Attr(unix.NFTA_PAYLOAD_LEN, be32(f.size))
	})
}

func compare(op uint32, value ...byte) expr {
	return named("cmp", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_CMP_SREG, be32(register))
		b.Attr(unix.NFTA_CMP_OP, be32(op))
		b.Nest(unix.NFTA_CMP_DATA, func() { b.Attr(unix.NFTA_DATA_VALUE, value) })
	})
}

// is goes on if a field has a value.
func is(f field, value ...byte) expr {
	return all(f.load(register), compare(unix.NFT_CMP_EQ, value...))
}

// between goes on if a field is one of first to last.
func between(f field, first, last []byte) expr {
	return all(f.load(register), compare(unix.NFT_CMP_GTE, first...), compare(unix.NFT_CMP_LTE, last...))
}

func all(parts ...expr) expr {
	return func(b *rtnl.Batch) {
		for _, p := range parts {
			p(b)
		}
	}
}

// in goes on if the fields are in a set.
func in(set string, fields ...field) expr {
	return all(load(fields...), named("lookup", func(b *rtnl.Batch) {
		b.AttrString(unix.NFTA_LOOKUP_SET, set)
		b.Attr(unix.NFTA_LOOKUP_SREG, be32(register))
	}))
}

// vmap does what a map says of a field, if it says anything.
func vmap(name string, f field) expr {
	return all(load(f), named("lookup", func(b *rtnl.Batch) {
		b.AttrString(unix.NFTA_LOOKUP_SET, name)
		b.Attr(unix.NFTA_LOOKUP_SREG, be32(register))
		b.Attr(unix.NFTA_LOOKUP_DREG, be32(unix.NFT_REG_VERDICT))
	}))
}

// verdict ends a rule: see rtnl.Batch.Verdict.
func verdict(code int32, chain string) expr {
	return named("immediate", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_IMMEDIATE_DREG, be32(unix.NFT_REG_VERDICT))
		b.Nest(unix.NFTA_IMMEDIATE_DATA, func() { b.Verdict(code, chain) })
	})
}

// State bits of ct, as nft has them: 1 << (enum ip_conntrack_info % IP_CT_IS_REPLY + 1).
const (
	established = 2
	related     = 4
)

// state goes on if a packet's connection is in one of the states.
func state(bits uint32) expr {
	return all(named("ct", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_CT_DREG, be32(register))
		b.Attr(unix.NFTA_CT_KEY, be32(unix.NFT_CT_STATE))
	}), masked(rtnl.NativeU32(bits)...), compare(unix.NFT_CMP_NEQ, 0, 0, 0, 0))
}

// masked leaves of what was loaded the bits of a mask.
func masked(mask ...byte) expr {
	return named("bitwise", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_BITWISE_SREG, be32(register))
		b.Attr(unix.NFTA_BITWISE_DREG, be32(register))
		b.Attr(unix.NFTA_BITWISE_LEN, be32(uint32(len(mask))))
		b.Nest(unix.NFTA_BITWISE_MASK, func() { b.Attr(unix.NFTA_DATA_VALUE, mask) })
		b.Nest(unix.NFTA_BITWISE_XOR, func() { b.Attr(unix.NFTA_DATA_VALUE, make([]byte, len(mask))) })
	})
}

// count adds to a named counter.
func count(name string) expr {
	return named("objref", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_OBJREF_IMM_TYPE, be32(unix.NFT_OBJECT_COUNTER))
		b.AttrString(unix.NFTA_OBJREF_IMM_NAME, name)
	})
}

// refresh has an element of a set with a timeout last anew.
func refresh(set string, fields ...field) expr {
	return all(load(fields...), named("dynset", func(b *rtnl.Batch) {
		b.AttrString(unix.NFTA_DYNSET_SET_NAME, set)
		b.Attr(unix.NFTA_DYNSET_OP, be32(unix.NFT_DYNSET_OP_UPDATE))
		b.Attr(unix.NFTA_DYNSET_SREG_KEY, be32(register))
		b.Attr(unix.NFTA_DYNSET_TIMEOUT, be64(uint64(cutLasts.Milliseconds())))
	}))
}

// log tells the group of nflog of at most a few packets each second.
func log(prefix string) expr {
	return all(named("limit", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_LIMIT_RATE, be64(logRate))
		b.Attr(unix.NFTA_LIMIT_UNIT, be64(1))
		b.Attr(unix.NFTA_LIMIT_BURST, be32(logBurst))
		b.Attr(unix.NFTA_LIMIT_TYPE, be32(unix.NFT_LIMIT_PKTS))
		b.Attr(unix.NFTA_LIMIT_FLAGS, be32(0))
	}), named("log", func(b *rtnl.Batch) {
		b.Attr(unix.NFTA_LOG_GROUP, []byte{logGroup >> 8, logGroup & 0xff})
		b.AttrString(unix.NFTA_LOG_PREFIX, prefix)
		b.Attr(unix.NFTA_LOG_SNAPLEN, be32(logSnap))
	}))
}
