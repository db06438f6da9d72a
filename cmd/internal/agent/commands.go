package agent

import (
	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/extension"
)

// heedCommands is called after a command of the network's config ended otherwise than before.
func (a *Agent) heedCommands() error {
	a.attend(problemCommand, a.cfg.Commands.Problem())
	if a.denied == nil {
		return nil
	}
	return a.lookAround() // it may have been waited for
}

// site is where the commands of the network's config are run, if it has any.
func (a *Agent) site() extension.Site {
	s := extension.Site{Commands: backend.Commands(*a.network)}
	if s.Any() {
		s.Own = a.own.Lease
		for _, pool := range a.network.Pools {
			s.Network = append(s.Network, pool.Prefix)
		}
	}
	return s
}
