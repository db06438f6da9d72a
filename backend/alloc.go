package backend

import (
	"encoding/json"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// ByOthers says whether packets to hosts of a kind of backend are carried by others: by routing daemons, a cloud's routers, or
// what commands made. They come by whatever link those choose, and bear their containers' addresses.
func ByOthers(kind string) bool { return kind == "alloc" || kind == "extension" }

// alloc leaves to others how packets reach a peer. The host's own subnet is a route, so that a routing daemon has it to announce.
type alloc struct{ host Host }

type allocOptions struct{}

func parseAlloc(options json.RawMessage) (allocOptions, []string, error) {
	var o allocOptions
	unknown, err := decode(options, &o, "Type")
	return o, unknown, err
}

func (allocOptions) bind(host Host) (Backend, error) { return alloc{host}, checkMTU(host, host.MTU) }

func (b alloc) MTU() int                         { return b.host.MTU }
func (alloc) Data(subnet.Family) json.RawMessage { return nil }
func (alloc) WantsNear() bool                    { return false }

func (alloc) Local(own subnet.Endpoint) []kernel.Object {
	return []kernel.Object{kernel.Unreachable{Dst: own.Subnet}}
}

func (alloc) Peer(_, _ subnet.Endpoint, _ bool) (string, []kernel.Object, error) {
	return "others", nil, nil
}
