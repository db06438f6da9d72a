package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// completeLease offers the subnets and hosts that etcd knows as the first argument.
func (a *app) completeLease(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	err := a.withStore(func(s *etcdstore.Store) error {
		return a.bounded(cmd.Context(), func(ctx context.Context) error {
			listing, err := s.Leases(ctx)
			for _, r := range listing.Records {
				for _, p := range r.Subnets() {
					names = append(names, p.String())
				}
				if r.Host != "" {
					names = append(names, r.Host)
				}
			}
			return err
		})
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}
