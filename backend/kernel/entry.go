package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// op is what a request does.
type op uint8

const (
	put    op = iota // make it so, whatever is there
	remove           // by key
)

// message is the type of a request, given the one that makes new objects: the kernel numbers new, delete, get.
func (o op) message(create uint16) uint16 { return create + uint16(o) }

func (o op) flags() uint16 {
	if o == put {
		return unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return 0
}

// standing is an object on a link.
type standing interface {
	Object
	link() string
}

// entry is an object on a link that one netlink message puts and another removes.
type entry interface {
	standing
	// encode adds the request to b; to remove, the key of an object is enough. index is the link's.
	encode(b *rtnl.Batch, op op, index int32)
}

// entryKinds says how the kernel tells of the kinds of entries. The dumps are of what may be ours, and only that: also on
// a host with a full table of somebody else's routes.
var entryKinds = [kinds]struct {
	create   uint16 // the type of the message that tells of one
	decode   func(body []byte, names map[int32]string) found
	onLink   func(b *rtnl.Batch, index int32) // asks for those on a link
	ethernet bool                             // only links that have MAC addresses have any
	all      []func(b *rtnl.Batch)            // or, where links have none of their own, for all
}{
	KindAddress:   {create: unix.RTM_NEWADDR, decode: decodeAddress, onLink: dumpAddresses},
	KindNeighbour: {create: unix.RTM_NEWNEIGH, decode: decodeNeighbour, onLink: dumpNeighbours, ethernet: true},
	KindFDB:       {create: unix.RTM_NEWNEIGH, decode: decodeFDB, onLink: dumpFDB, ethernet: true},
	KindRoute:     {create: unix.RTM_NEWROUTE, decode: decodeRoute, all: []func(*rtnl.Batch){dumpOwnRoutes, dumpBootRoutes}},
}

// ownership says whose an object in the kernel is.
type ownership uint8

const (
	foreign      ownership = iota
	ours                   // as we make them: removed if not wanted
	stale                  // ours by its mark, but not as we make them: removed
	flannelVXLAN           // a route of flannel's: removed if it is on a link of ours
	flannelIPIP            // a route of flannel's: removed if it is on an ipip link of ours
	flannelPlain           // perhaps a route of flannel's: removed where a route of ours does the same
	conflicting            // a route of somebody else's in the place of ours: ours takes it back
)

// found is an object as it is in the kernel; nil if a message told of none that concerns us.
type found struct {
	object Object
	mark   ownership
}
