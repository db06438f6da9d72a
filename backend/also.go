package backend

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// also is in the data of a lease while its host moves from one kind of backend to another, beside what the kind says: how the host
// can be reached still, or already.
type also struct {
	Also struct {
		Type string
		Data json.RawMessage `json:",omitempty"`
	}
}

// AddAlso adds a second way to the data of an endpoint's first: a kind of backend, and what that tells peers.
func AddAlso(data json.RawMessage, kind string, second json.RawMessage) json.RawMessage {
	var a also
	a.Also.Type, a.Also.Data = kind, second
	text, _ := json.Marshal(a) // a string and JSON: it cannot fail
	if len(data) <= len("{}") {
		return text
	}
	return slices.Concat(data[:len(data)-1], json.RawMessage(","), text[1:])
}

// Also is a lease as it would be if its host's second way were its only one; it has none if it does not say the same of one for
// each family.
func Also(l subnet.Lease) (second subnet.Lease, ok bool) {
	marked := func(e subnet.Endpoint) bool { return bytes.Contains(e.Data, []byte(`"Also"`)) }
	if !slices.ContainsFunc(l.Endpoints, marked) { // most leases, and each is looked at often
		return subnet.Lease{}, false
	}
	second, second.Backend, second.Endpoints = l, "", slices.Clone(l.Endpoints)
	for i, e := range l.Endpoints {
		var a also
		if json.Unmarshal(e.Data, &a) != nil {
			return subnet.Lease{}, false
		}
		if kind := a.Also.Type; kind == "" || kind == l.Backend || i > 0 && kind != second.Backend {
			return subnet.Lease{}, false
		}
		second.Backend, second.Endpoints[i].Data = a.Also.Type, a.Also.Data
	}
	return second, second.Backend != ""
}

// Reach are the objects that send packets to a peer's subnets by the backend of its lease, and the path they take, which is empty
// where the host has no family of the peer's.
func Reach(b Backend, own, peer subnet.Lease, near func(netip.Addr) bool) (path string, objs []kernel.Object, err error) {
	if b, ok := b.(wireguard); ok {
		if objs, err = b.peer(own, peer); len(objs) > 0 {
			path = WireGuard
		}
		return path, objs, err
	}
	for _, e := range peer.Endpoints {
		mine, ok := own.Endpoint(subnet.FamilyOf(e.Subnet.Addr()))
		if !ok {
			continue
		}
		way, more, err := b.Peer(mine, e, b.WantsNear() && near(e.PublicIP))
		if err != nil {
			return "", nil, err
		}
		if path = way; objs == nil {
			objs = more
		} else {
			objs = append(objs, more...)
		}
	}
	return path, objs, nil
}
