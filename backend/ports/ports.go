// Package ports says which addresses a container may send from: by elements of sets in nftables, which the CNI plugin adds
// when it attaches a container, before anything can be sent, and which the daemon holds. The tables, whose chains drop what no
// element lets pass, are the daemon's alone (see package firewall): with it dead they are there, and nothing new opens; where
// they are not, nothing is guarded.
//
// It stands apart from package firewall so that the plugin, a process for each container, has nothing else to load.
package ports

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netns"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

const (
	// Table is that of our tables, of the families bridge and inet.
	Table = "overlayd"
	// Prefix is what the names of ports begin with that the plugin makes itself. All such are guarded, with elements or not.
	Prefix = "oveth"
)

// Port is the host's end of a container's link, and what may come in by it.
type Port struct {
	Index  int              // of the link
	Routed bool             // no port of a bridge: its routes say what may come in, and the rest is of no account
	MAC    net.HardwareAddr // of the container's end
	Addrs  []netip.Addr     // the container's; its IPv6 link-local one, of the MAC, is added
	// Allowed are what the container may send from besides, because others are behind it: a VM, a VPN.
	Allowed []netip.Prefix
}

// Element is one of a set in one of the tables. Its key is as the kernel has it, or an Interval.
type Element struct {
	Set, Key string
}

// Interval is both ends as one key. No other key has an odd length.
func Interval(first, last string) string { return first + last + "\x00" }

// ends are those of an Interval; of any other key it is all there is.
func ends(key string) (first, last string) {
	if n := len(key); n%2 == 1 {
		return key[:n/2], key[n/2 : n-1]
	}
	return key, ""
}

// Elements are what lets the port's container send.
func (p Port) Elements() []Element {
	index := binary.NativeEndian.AppendUint32(nil, uint32(p.Index))
	if p.Routed {
		return []Element{{Set: "routed", Key: string(index)}}
	}
	// Numbers stand as the CPU has them, but in sets with intervals.
	from := string(append(index, p.mac()...))
	sorted := string(append(binary.BigEndian.AppendUint32(nil, uint32(p.Index)), p.mac()...))
	all := []Element{{Set: "ports", Key: string(index)}}
	for _, a := range append(slices.Clone(p.Addrs), LinkLocal(p.MAC)) {
		all = append(all, Element{Set: "own" + family(a), Key: from + string(a.AsSlice())})
		if a.Is6() {
			all = append(all, Element{Set: "target6", Key: from + string(a.AsSlice())})
		}
	}
	for _, r := range ranges(p.Allowed) {
		all = append(all, Element{"allowed" + family(r.From()),
			Interval(sorted+string(r.From().AsSlice()), sorted+string(r.To().AsSlice()))})
	}
	return all
}

// ranges are those of the prefixes, apart from each other: the kernel takes no others.
func ranges(prefixes []netip.Prefix) []netipx.IPRange {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		b.AddPrefix(p)
	}
	s, err := b.IPSet()
	if err != nil {
		return nil // of invalid prefixes, which nobody has
	}
	return s.Ranges()
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// mac is padded, as each part of a key is, to four bytes.
func (p Port) mac() []byte { return append(slices.Clone(p.MAC), 0, 0)[:8] }

// LinkLocal is the address that the kernel makes of a MAC (RFC 4291, appendix A). A guarded container has no other of its kind.
func LinkLocal(m net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// Add lets the port's container send. Where nothing is guarded it does nothing. Nobody need take it back: once the link is gone
// it is of no use, its index is never another's, and the daemon sweeps it. The kernel would take 15 ms for it (it waits for all
// CPUs when the socket is closed), which is more than all else of a DEL.
func Add(p Port) error {
	err := add(p)
	if slices.ContainsFunc(nowhere, func(no error) bool { return errors.Is(err, no) }) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("guard of the port %d: %w", p.Index, err)
	}
	return nil
}

// nowhere are the errors of a kernel in which there is nothing of the kind: no table, no nf_tables, no nfnetlink.
var nowhere = []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT}

func add(p Port) error {
	conn, family, err := dial(p)
	if err != nil {
		return err
	}
	defer conn.Close()
	var b rtnl.Batch
	b.Transaction()
	all := p.Elements()
	for _, set := range Sets(p.Routed) {
		var keys []string
		for _, e := range all {
			if e.Set == set {
				keys = append(keys, e.Key)
			}
		}
		Encode(&b, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, family, set, keys)
	}
	return conn.Commit(&b)
}

// Guarded says whether ports such as p are guarded here.
func Guarded(p Port) bool {
	conn, _, err := dial(p)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// dial opens a socket, and looks for the sets: a transaction that fails takes as long as one that removes.
func dial(p Port) (conn *rtnl.Conn, family uint8, err error) {
	if family = unix.NFPROTO_BRIDGE; p.Routed {
		family = unix.NFPROTO_INET
	}
	if conn, err = rtnl.DialNetfilter(netns.None(), rtnl.AnswersSize); err != nil {
		return nil, 0, err
	}
	var b rtnl.Batch
	b.BeginNft(unix.NFT_MSG_GETSET, 0, family)
	b.AttrString(unix.NFTA_SET_TABLE, Table)
	b.AttrString(unix.NFTA_SET_NAME, Sets(p.Routed)[0])
	b.End()
	err = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if err == nil {
		var failed map[int]error
		failed, err = conn.Exec(&b, nil)
		err = cmp.Or(err, failed[0])
	}
	if errors.Is(err, unix.EINVAL) { // of nfnetlink (nfnetlink_rcv_msg), where nf_tables is not there, or may not be loaded
		err = unix.EOPNOTSUPP
	}
	if err != nil {
		conn.Close()
	}
	return conn, family, err
}

// Sets are those of a table, without those that only rules know.
func Sets(routed bool) []string {
	if routed {
		return []string{"routed"}
	}
	return []string{"ports", "own4", "own6", "target6", "allowed4", "allowed6"}
}

// Encode adds requests to b that are about elements of a set.
func Encode(b *rtnl.Batch, msg, flags uint16, family uint8, set string, keys []string) {
	b.Elements(msg, flags, rtnl.Table{Family: family, Name: Table}, set, func(yield func(rtnl.Element) bool) {
		for _, key := range keys {
			first, last := ends(key)
			if !yield(rtnl.Element{Key: first, Last: last}) {
				return
			}
		}
	})
}

// Index is that of the link of an element.
func (e Element) Index() int {
	if len(e.Key)%2 == 1 {
		return int(binary.BigEndian.Uint32([]byte(e.Key)))
	}
	return int(binary.NativeEndian.Uint32([]byte(e.Key)))
}
