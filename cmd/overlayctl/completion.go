package main

import (
	"slices"

	"github.com/spf13/cobra"
)

// completeLease offers the subnets and hosts that etcd knows as the first argument.
func (a *app) completeLease(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	listing, err := a.listing(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, r := range listing.Records {
		for _, p := range r.Subnets() {
			names = append(names, p.String())
		}
		if r.Host != "" {
			names = append(names, r.Host)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}
