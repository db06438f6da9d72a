package kernel

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Link is a link that we make. What stands on it is programmed after it.
type Link interface {
	Object
	name() string
	// below is the name of the link that carries it; empty: any, as the routes say.
	below() string
	// inner6 tells whether it is to carry IPv6.
	inner6() bool
	// made tells whether l can be what we made of it, whatever others made of that since.
	made(l link) bool
	// like tells whether l is as it should be, but for what the kernel changes in place.
	like(l link) bool
	// is tells whether l is exactly as it should be. underlay is the index of the link below; 0: of any.
	is(l link, underlay int32) bool
	// create adds the requests that make the link, up and with its MAC from the first moment: udev would give one that
	// comes without another.
	create(b *rtnl.Batch, underlay int32)
	// change adds the requests that bring l there, which is like it.
	change(b *rtnl.Batch, l link, underlay int32)
}

// handmade is a link that takes more than the requests of create and change.
type handmade interface {
	Link
	// put brings the link there, which may be there already, and tells whether it had to do anything. It leaves in
	// r.links what is there then.
	put(r *Reconciler) (changed bool, err error)
}

// LinkName is the name of a link that is an object of ours; "" of another object.
func LinkName(o Object) string {
	if l, ok := o.(Link); ok {
		return l.name()
	}
	return ""
}

func linkKey(name string) Key { return Key{name: name} }

// link is a link as it is in the kernel.
type link struct {
	index int32
	name  string
	up    bool
	arp   bool
	ports bool // it belongs to a bridge or a bond
	mtu   int
	mac   MAC
	kind  string
	info  linkInfo // of a kind that we make; nil: of another
	alias string   // by which a link that a process serves says what it is
}

// linkInfo is what is peculiar to the links of a kind.
type linkInfo interface {
	// own is l as a link that we made, by what it is and the name that we give such a link; nil if it is none. Adopted ones
	// keep theirs.
	own(l link) Link
	// adoptable tells whether such a link can serve us that others made.
	adoptable() bool
	existing(l link) Existing
}

// Existing is a link that is there, of a kind that we make.
type Existing struct {
	Link      Link       // as we would make it, but for what carries it
	Foreign   string     // what it has that ours never have, so that it serves another purpose; "" if nothing
	UserSpace bool       // a process carries it, not the kernel
	Remote    netip.Addr // where an ipip link leads that is not for all
	Below     int32      // the index of the link that carries it, where that tells it from others; 0: any
	Peers     []WGPeer   // that a wireguard link has, each with the endpoint that it is using now
}

// Links are the links that are in a namespace, of the kinds that we make, in order of their making. A zero namespace is the
// current one.
func Links(ns netns.NsHandle) ([]Existing, error) {
	c, err := rtnl.Dial(ns, rtnl.AnswersSize)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	defer c.Close()
	all, err := dumpLinks(c, new(rtnl.Batch))
	if err != nil {
		return nil, fmt.Errorf("kernel: dump links: %w", err)
	}
	var found []Existing
	for _, index := range slices.Sorted(maps.Keys(all)) {
		switch l := all[index]; i := l.info.(type) {
		case nil:
		case wgInfo:
			if e, ok := i.described(ns, l); ok {
				found = append(found, e)
			}
		default:
			found = append(found, i.existing(l))
		}
	}
	return found, nil
}

// linkKinds read what is peculiar to links (IFLA_INFO_DATA), by the name that the kernel gives the kind.
var linkKinds = map[string]func(data []byte) linkInfo{
	"vxlan":     decodeVXLAN,
	"ipip":      decodeIPIP,
	"wireguard": decodeWireGuard,
	"tun":       decodeTUN,
}

// own is l as a link that we made; nil if we did not.
func (l link) own() Link {
	if l.info == nil {
		return nil
	}
	return l.info.own(l)
}

// decodeLink reads an RTM_NEWLINK or RTM_DELLINK.
func decodeLink(body []byte) link {
	var h unix.IfInfomsg
	attrs := rtnl.Header(body, &h)
	l := link{index: h.Index, up: h.Flags&unix.IFF_UP != 0, arp: h.Flags&unix.IFF_NOARP == 0}
	for typ, data := range rtnl.Attributes(attrs) {
		switch {
		case typ == unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(data)
		case typ == unix.IFLA_MTU && len(data) == 4:
			l.mtu = int(binary.NativeEndian.Uint32(data))
		case typ == unix.IFLA_ADDRESS:
			copy(l.mac[:], data)
		case typ == unix.IFLA_MASTER:
			l.ports = true
		case typ == unix.IFLA_LINKINFO:
			l.describe(data)
		case typ == unix.IFLA_IFALIAS:
			l.alias = unix.ByteSliceToString(data)
		}
	}
	if i := decodeAlias(l.alias); i != nil && l.kind == "tun" {
		l.info = i
	}
	return l
}

// describe reads an IFLA_LINKINFO.
func (l *link) describe(data []byte) {
	var info []byte
	for typ, data := range rtnl.Attributes(data) {
		switch typ {
		case unix.IFLA_INFO_KIND:
			l.kind = unix.ByteSliceToString(data)
		case unix.IFLA_INFO_DATA:
			info = data
		}
	}
	if decode := linkKinds[l.kind]; decode != nil {
		l.info = decode(info)
	}
}

func encodeDeleteLink(b *rtnl.Batch, index int32) {
	b.Begin(unix.RTM_DELLINK, 0, unix.IfInfomsg{Index: index})
	b.End()
}

// linkByName reads one link; unix.ENODEV if there is none.
func linkByName(c *rtnl.Conn, b *rtnl.Batch, name string) (link, error) {
	b.Reset()
	b.Begin(unix.RTM_GETLINK, 0, unix.IfInfomsg{})
	b.AttrString(unix.IFLA_IFNAME, name)
	b.End()
	var l link
	failed, err := c.Exec(b, func(_ int, body []byte) { l = decodeLink(body) })
	if err == nil {
		err = failed[0]
	}
	return l, err
}

// dumpLinks reads all links.
func dumpLinks(c *rtnl.Conn, b *rtnl.Batch) (map[int32]link, error) {
	all := make(map[int32]link)
	b.Reset()
	b.Begin(unix.RTM_GETLINK, 0, unix.IfInfomsg{})
	b.End()
	err := c.Dump(b, func(body []byte) {
		l := decodeLink(body)
		all[l.index] = l
	})
	return all, err
}

// linkTable knows the links of the namespace, to tell names from indexes.
type linkTable struct {
	names  map[int32]string
	byName map[string]link
}

func newLinkTable() *linkTable {
	return &linkTable{names: map[int32]string{}, byName: map[string]link{}}
}

// set takes l as it is now, and returns what was known of its name before: the zero link for nothing.
func (t *linkTable) set(l link) (before link) {
	before = t.byName[l.name]
	if name := t.names[l.index]; name != l.name {
		delete(t.byName, name)
	}
	t.names[l.index] = l.name
	t.byName[l.name] = l
	return before
}

// drop forgets a link, and returns what was known of it.
func (t *linkTable) drop(index int32) (before link) {
	name := t.names[index]
	delete(t.names, index)
	before = t.byName[name]
	if before.index == index {
		delete(t.byName, name)
	}
	return before
}
