package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/agent"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// answerWithin is how long a command that is not the daemon waits for etcd.
const answerWithin = 5 * time.Second

// dryRun prints what run would install with the leases as they are now, as commands for a shell, and changes nothing:
// neither in etcd, nor in the kernel, nor on disk.
func (c *config) dryRun(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	state, err := agent.ReadState(c.stateDir, agent.MachineID())
	if errors.Is(err, fs.ErrNotExist) {
		state, err = agent.NewState(), nil
	}
	if err != nil {
		return err
	}
	client, store, err := c.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	all := map[string]subnet.Network{}
	names := append([]string{""}, c.joined()...)
	for _, name := range names {
		of, err := store.Named(name)
		if err != nil {
			return err
		}
		raw, _, err := of.Network(ctx)
		if name == "" && c.several() && errors.Is(err, etcdstore.ErrNoNetwork) {
			continue // it need not be there
		}
		if err != nil {
			return err
		}
		if all[name], err = subnet.ParseNetwork(raw); err != nil {
			return err
		}
	}
	for _, name := range names {
		if network, ok := all[name]; ok {
			others := maps.Clone(all)
			delete(others, name)
			if err := c.dryRunOf(ctx, w, name, network, others, store, state); err != nil {
				return err
			}
		}
	}
	return nil
}

// dryRunOf prints it for one network.
func (c *config) dryRunOf(ctx context.Context, w io.Writer, name string, network subnet.Network, others map[string]subnet.Network,
	store *etcdstore.Store, state *agent.State) error {
	if name != "" {
		var err, stateErr error
		store, err = store.Named(name)
		state, stateErr = state.Named(name)
		if err := errors.Join(err, stateErr); err != nil {
			return err
		}
	}
	last := leasecache.Read(state.Dir(), state.HostID, leasecache.Now())
	host, err := c.findHost(network, agent.InUse(last), state)
	if err != nil {
		return err
	}
	host.Network = name
	preview, err := agent.NewPreview(network, host, agent.Shield{Masquerade: c.masquerade, Guard: c.guard}, others)
	if err != nil {
		return err
	}
	subnets, leases, err := store.Choose(ctx, c.join(state, last, c.subnetFileOf(name)), preview.Wish())
	if err != nil {
		return err
	}
	lines, problems := preview.Plan(state.HostID, subnets, leases.Records)
	for _, p := range problems {
		c.log.Warn("peer cannot be reached", "err", p)
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
