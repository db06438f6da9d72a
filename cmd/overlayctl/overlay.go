package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// overlayFlag names the network that a command is about, of several.
const overlayFlag = "overlay-network"

// ofAllKey marks commands that are not about one network.
const ofAllKey = "of all networks"

// ofAll marks commands, and those below them, that are not about one network: they refuse to be told of one.
func ofAll(cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		cmd.Annotations = map[string]string{ofAllKey: ""}
	}
}

// chooseOverlay reads the network that is meant: "" is the one that has no name. A variable of the environment does not count
// where none can be meant.
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
