package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// overlayFlag names the network that a command is about, of several.
const overlayFlag = "overlay-network"

// What marks commands, and those below them, that cannot be about any network.
const (
	ofAllKey   = "of all networks"
	unnamedKey = "of the network that has no name"
)

// ofAll marks commands that are not about one network.
func ofAll(cmds ...*cobra.Command) { annotate(ofAllKey, cmds) }

// ofUnnamed marks commands that are about what only the network that has no name has, as what denials tell.
func ofUnnamed(cmds ...*cobra.Command) { annotate(unnamedKey, cmds) }

func annotate(key string, cmds []*cobra.Command) {
	for _, cmd := range cmds {
		cmd.Annotations = map[string]string{key: ""}
	}
}

// chooseOverlay reads the network that is meant: "" is the one that has no name. Commands that are about no one network refuse to
// be told of one, but pass over a variable of the environment.
func (a *app) chooseOverlay(cmd *cobra.Command, from string) error {
	if a.overlay == subnet.DefaultNetwork {
		a.overlay = ""
	}
	if a.overlay == "" {
		return nil
	}
	if err := subnet.ValidNetworkName(a.overlay); err != nil {
		return usageError{fmt.Errorf("%s: %w", from, err)}
	}
	for c := cmd; c != nil; c = c.Parent() {
		if _, unnamed := c.Annotations[unnamedKey]; unnamed {
			return usageError{fmt.Errorf("%q is about the network that has no name, and not about %s", c.CommandPath(), a.overlay)}
		}
		if _, all := c.Annotations[ofAllKey]; all && a.declared.Changed(overlayFlag) {
			return usageError{fmt.Errorf("%q is not about one network: leave --%s out", c.CommandPath(), overlayFlag)}
		} else if all {
			a.overlay = ""
		}
	}
	return nil
}

// overlayDir is where the daemon keeps what it tells of the network that is meant.
func (a *app) overlayDir() string { return filepath.Join(a.settings.RunDir, a.overlay) }

// subnetFile is the lease of the network that is meant.
func (a *app) subnetFile() string { return filepath.Join(a.overlayDir(), "subnet.env") }

// askAll calls f as ask does, with what is below the prefix: the unnamed network, and what all have in common.
func (a *app) askAll(ctx context.Context, f func(context.Context, *etcdstore.Store) error) error {
	s, err := a.root()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return a.named(f(ctx, s))
}

// networks asks for all networks.
func (a *app) networks(ctx context.Context) (found etcdstore.Networks, err error) {
	err = a.askAll(ctx, func(ctx context.Context, s *etcdstore.Store) (err error) {
		found, err = s.Networks(ctx)
		return err
	})
	return found, err
}

// inNetwork is a daemon's status as it is in one of its named networks.
func inNetwork(s api.Status, name string) (api.Status, error) {
	i := slices.IndexFunc(s.Networks, func(n api.Network) bool { return n.Name == name })
	if i < 0 {
		return api.Status{}, fmt.Errorf("this host is not in network %s: it joins those that \"networks\" names in its configuration", name)
	}
	n := s.Networks[i]
	s.Ready, s.Degraded, s.Stage, s.Problems = n.Ready, n.Degraded, n.Stage, n.Problems
	s.Network, s.Backend, s.Subnets, s.Underlay, s.PublicIP, s.MTU = n.Network, n.Backend, n.Subnets, n.Underlay, n.PublicIP, n.MTU
	s.Lease, s.Etcd, s.Kernel, s.Policy, s.Peers, s.WireGuard = n.Lease, n.Etcd, n.Kernel, n.Policy, n.Peers, n.WireGuard
	s.FastPath, s.Networks = api.FastPath{}, nil // of the network that has no name
	return s, nil
}

// printNetworks writes a line for each network that has a name.
func (a *app) printNetworks(w io.Writer, networks []api.Network) {
	if len(networks) == 0 {
		return
	}
	fmt.Fprintln(w)
	row(w, "NETWORK", "STATE", "SUBNET", "LEASE", "BACKEND", "PEERS", "KERNEL")
	for _, n := range networks {
		peers := 0
		for _, p := range n.Peers {
			if p.Path != "" {
				peers++
			}
		}
		state, kernel := "ready", "in step"
		switch {
		case !n.Ready:
			state = "not ready"
		case n.Degraded:
			state = "degraded"
		}
		if !n.Kernel.InStep {
			kernel = "not in step"
		}
		row(w, n.Name, state, strings.Join(n.Subnets, ","), n.Lease.State, n.Backend, fmt.Sprintf("%d of %d", peers, len(n.Peers)), kernel)
	}
}
