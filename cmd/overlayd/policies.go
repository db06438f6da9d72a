package main

import (
	"errors"
	"net/netip"
	"path"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/enforce"
	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/cmd/internal/agent"
	"github.com/overlayd/overlayd/cmd/internal/enforcer"
	"github.com/overlayd/overlayd/cmd/internal/names"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// enforcer puts together what has policies in force.
func (c *config) enforcer(p *parts, name string, store *etcdstore.Store, answers *names.Server, stateDir string, metrics prometheus.Registerer) (*enforcer.Enforcer, error) {
	cfg := enforcer.Config{
		Former:  func() (bool, error) { return enforce.Remove(netns.None()) },
		Dropped: func() (map[string]uint64, error) { return enforce.Dropped(netns.None(), name) },
		Bridge:  enforcer.BridgeOf,
		Store:   store, Writer: store.EndpointWriter(), Fast: agent.Slow{},
		Locals: p.locals.Locals, Changes: p.locals.Changes(),
		Released: func(addrs []netip.Addr) {
			for _, addr := range addrs {
				dir := c.runDir
				if p.shared != nil {
					if network, _ := p.shared.Serves(addr); network != "" {
						dir = filepath.Dir(c.subnetFileOf(network))
					}
				}
				if err := pending.Tell(dir, []netip.Addr{addr}); err != nil { // then the plugin hears it from the kernel, a little later
					c.log.Debug("cannot tell that policies are in force", "err", err)
				}
			}
		},
		Network: path.Join(c.prefix, name), StateDir: stateDir, Options: c.policy,
		Registerer: metrics, Log: c.log,
	}
	if name == "" {
		cfg.Fast = p.fast
	}
	if answers != nil {
		cfg.Names = answers
	}
	if p.common != nil {
		cfg.Former = func() (bool, error) { return p.common.Former(name) }
		cfg.Beside = func(addr netip.Addr) (is, theirs bool) {
			network, _ := p.shared.Serves(addr) // what is in none's range is the unnamed one's
			return network != name, p.common.Enforces(network)
		}
	}
	var err error
	cfg.Table, err = enforce.New(enforce.Config{Namespace: netns.None(), Log: c.log, Registerer: metrics, Network: name, Common: p.common})
	if errors.Is(err, unix.EPROTONOSUPPORT) { // as long as there are no policies nothing is lost
		cfg.Table, err = enforcer.NoTable{Err: errors.New("policies cannot be enforced: the kernel has no nf_tables")}, nil
	}
	return enforcer.New(cfg), err
}
