package kernel

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// hearOthers drops notifications of what the socket with the port own did: they bear it in nlmsg_pid, but for FDB entries
// that are new or changed. Of those the ones with our mark are ours.
func hearOthers(own uint32) []unix.SockFilter {
	return append(dropOurs(own), unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1})
}

// dropOurs ends behind its last instruction for what is to be heard.
func dropOurs(own uint32) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 12}, // nlmsg_pid
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: wire32(own), Jt: 6},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4}, // nlmsg_type
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: wire16(unix.RTM_NEWNEIGH), Jf: 5},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: unix.NLMSG_HDRLEN}, // ndm_family
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AF_BRIDGE, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: unix.NLMSG_HDRLEN + 8}, // ndm_state
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: wire16(fdbState), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

// hearNoRoutes drops also those of routes that neither are ours nor can take the place of ours: which have another
// protocol and none of our metrics.
func hearNoRoutes(own uint32) []unix.SockFilter {
	return append(dropOurs(own), []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4}, // nlmsg_type
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: wire16(unix.RTM_NEWROUTE), Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: wire16(unix.RTM_DELROUTE), Jf: 10},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: unix.NLMSG_HDRLEN + 5}, // rtm_protocol
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: RouteProtocol, Jt: 8},
		// Where the attribute RTA_PRIORITY begins; 0: there is none.
		{Code: unix.BPF_LD | unix.BPF_IMM, K: unix.NLMSG_HDRLEN + unix.SizeofRtMsg},
		{Code: unix.BPF_LDX | unix.BPF_IMM, K: unix.RTA_PRIORITY},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: skfAdNlattr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jt: 5},
		{Code: unix.BPF_MISC | unix.BPF_TAX},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_IND, K: unix.SizeofRtAttr},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: wire32(^uint32(metricSpread - 1))},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: wire32(metricBase), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}...)
}

// skfAdNlattr is SKF_AD_OFF + SKF_AD_NLATTR of linux/filter.h: looks for the attribute X of those from A on.
const skfAdNlattr = 1<<32 - 0x1000 + 12

// wire32 is v as BPF loads it, which takes everything to be in network byte order.
func wire32(v uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v))
}

func wire16(v uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
}
