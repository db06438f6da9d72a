package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// peered is a peering as it is printed.
type peered struct {
	A string `json:"a"`
	B string `json:"b"`
}

func (a *app) networkPeerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "peer NETWORK NETWORK",
		Short: "Let containers of two networks reach each other, on hosts that are in both",
		Long: `Let containers of two networks reach each other, on hosts that are in both: elsewhere there is no way from one to the
other. Without it they do not. The network that has no name is called default.`,
		Args: arguments("NETWORK", "NETWORK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := etcdstore.NewPeering(args[0], args[1])
			if err != nil {
				return err
			}
			err = a.askAll(cmd.Context(), func(ctx context.Context, s *etcdstore.Store) error { return s.Peer(ctx, p) })
			if errors.Is(err, etcdstore.ErrConflict) {
				return a.missing(cmd.Context(), p)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "peered: %s and %s reach each other on hosts that are in both\n", networkName(p.A), networkName(p.B))
			return err
		},
	}
}

// missing says which of two networks is not there.
func (a *app) missing(ctx context.Context, p etcdstore.Peering) error {
	held, err := a.networks(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{p.A, p.B} {
		if held.Find(name).ModRevision == 0 {
			return noNetwork(name)
		}
	}
	return fmt.Errorf("a network that was not there is now: %w", etcdstore.ErrConflict)
}

func (a *app) networkUnpeerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unpeer NETWORK NETWORK",
		Short: "End what network peer has begun",
		Args:  arguments("NETWORK", "NETWORK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := etcdstore.NewPeering(args[0], args[1])
			if err != nil {
				return err
			}
			all, err := a.peerings(cmd.Context())
			if err != nil {
				return err
			}
			if !slices.Contains(all, p) {
				return fmt.Errorf("%s and %s are not peered", networkName(p.A), networkName(p.B))
			}
			if err := a.askAll(cmd.Context(), func(ctx context.Context, s *etcdstore.Store) error { return s.Unpeer(ctx, p) }); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "unpeered: %s and %s do not reach each other\n", networkName(p.A), networkName(p.B))
			return err
		},
	}
}

func (a *app) networkPeersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "peers",
		Short: "List the networks that reach each other",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.peerings(cmd.Context())
			if err != nil {
				return err
			}
			list := []peered{}
			for _, p := range all {
				list = append(list, peered{networkName(p.A), networkName(p.B)})
			}
			return a.print(list, func(w io.Writer) {
				row(w, "NETWORK", "NETWORK")
				for _, p := range list {
					row(w, p.A, p.B)
				}
			})
		},
	}
}

// peerings asks for the peerings.
func (a *app) peerings(ctx context.Context) (all []etcdstore.Peering, err error) {
	err = a.askAll(ctx, func(ctx context.Context, s *etcdstore.Store) (err error) {
		all, err = s.Peerings(ctx)
		return err
	})
	return all, err
}
