package backend

import (
	"encoding/json"

	"github.com/overlayd/overlayd/backend/extension"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// commanded leaves to commands how packets reach a peer: package extension runs them. They make of the own subnet what they want.
type commanded struct{ alloc }

type extensionOptions struct{ extension.Commands }

func parseExtension(options json.RawMessage) (extensionOptions, []string, error) {
	var o extensionOptions
	unknown, err := decode(options, &o.Commands, append(extension.Keys(), "Type")...)
	if err == nil {
		err = o.Check()
	}
	return o, unknown, err
}

// Commands are those of a network whose backend is extension, else none.
func Commands(n subnet.Network) extension.Commands {
	if n.Backend.Type != "extension" {
		return extension.Commands{}
	}
	o, _, _ := parseExtension(n.Backend.Options)
	return o.Commands
}

func (extensionOptions) bind(host Host) (Backend, error) {
	return commanded{alloc{host}}, checkMTU(host, host.MTU)
}

func (b commanded) Data(subnet.Family) json.RawMessage  { return b.host.Told }
func (commanded) Local(subnet.Endpoint) []kernel.Object { return nil }

func (commanded) Peer(_, _ subnet.Endpoint, _ bool) (string, []kernel.Object, error) {
	return "extension", nil, nil
}
