package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/dead"
)

func (a *app) cniGCCommand() *cobra.Command {
	dirs, dryRun := &cniDirs{}, false
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Free what containers that no longer exist have left behind",
		Long: `Free what containers that no longer exist have left behind: attachments of network namespaces that are gone, after
a reboot or a runtime that died, and addresses that no attachment and no network namespace of this host has.

A network namespace counts as gone when no process is in it, none holds it open and nothing is mounted on it. Runtimes
need not be stopped meanwhile.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := &dead.Collector{DryRun: dryRun, Freed: []attachment.Freed{}}
			warnings, err := dirs.collect(cmd.Context(), c)
			a.warn(warnings)
			return errors.Join(err, a.print(c.Freed, func(w io.Writer) {
				row(w, "NETWORK", "CONTAINER", "INTERFACE", "ADDRESS", "REASON")
				for _, f := range c.Freed {
					row(w, f.Network, f.ContainerID, f.IfName, f.Address, f.Reason)
				}
			}))
		},
	}
	dirs.register(cmd.Flags())
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be freed, and free nothing")
	return cmd
}

// collect frees what the dead hold, and returns what cannot be looked at.
func (d *cniDirs) collect(ctx context.Context, c *dead.Collector) (warnings []string, err error) {
	networks, err := d.everyNetwork(ctx)
	if err != nil {
		return nil, err
	}
	attached := make([]attachment.All, len(networks))
	pools := map[string][]string{} // directory to networks
	dataDirs := map[string]bool{attachment.DefaultDir: true}
	for i, n := range networks {
		if attached[i], err = n.attachments(); err != nil {
			return nil, err
		}
		pools[n.poolsDir] = append(pools[n.poolsDir], n.list.Name)
		dataDirs[n.dataDir] = true
	}
	if c.Living, err = attachment.Living(); err != nil {
		return nil, err
	}
	var errs []error
	for i, n := range networks {
		for _, k := range attached[i].Unusable {
			warnings = append(warnings, fmt.Sprintf("the attachment of container %s, %s, to %s cannot be read: it stays "+
				"until the runtime removes the container", k.ContainerID, k.IfName, k.Network))
		}
		errs = append(errs, c.Attachments(attached[i],
			func(a attachment.Attachment) error { return d.detach(ctx, n, a, "") },
			func(k attachment.Key) error {
				return attachment.With(ctx, n.dataDir, attachment.Shared, func(s *attachment.Store) error { return s.Remove(k) })
			}))
	}
	owners := func() (all attachment.All, err error) {
		for _, n := range networks {
			of, err := n.attachments()
			if err != nil {
				return all, err
			}
			all.Usable, all.Unusable = append(all.Usable, of.Usable...), append(all.Unusable, of.Unusable...)
		}
		return all, nil
	}
	for dir, names := range pools {
		errs = append(errs, c.Reservations(ctx, dir, names, owners))
	}
	if !c.DryRun {
		for dir := range dataDirs { // no runtime calls the plugin's GC
			errs = append(errs, attachment.With(ctx, dir, attachment.Exclusive, (*attachment.Store).Sweep))
		}
	}
	return warnings, errors.Join(errs...)
}
