package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
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
			c := &collector{dirs: dirs, dryRun: dryRun, found: []attachment.Freed{}}
			err := c.run(cmd.Context())
			a.warn(c.warnings)
			return errors.Join(err, a.print(c.found, func(w io.Writer) {
				row(w, "NETWORK", "CONTAINER", "INTERFACE", "ADDRESS", "REASON")
				for _, f := range c.found {
					row(w, f.Network, f.ContainerID, f.IfName, f.Address, f.Reason)
				}
			}))
		},
	}
	dirs.register(cmd.Flags())
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be freed, and free nothing")
	return cmd
}

// collector is one run of gc.
type collector struct {
	dirs     *cniDirs
	dryRun   bool
	found    []attachment.Freed
	warnings []string
}

func (c *collector) run(ctx context.Context) error {
	networks, err := c.dirs.everyNetwork(ctx)
	if err != nil {
		return err
	}
	// Attachments are read before namespaces are looked for: what is made in between is in neither list.
	attached := make([]attachment.All, len(networks))
	for i, n := range networks {
		if attached[i], err = n.attachments(); err != nil {
			return err
		}
	}
	living, err := attachment.Living()
	if err != nil {
		return err
	}
	var errs []error
	for i, n := range networks {
		for _, k := range attached[i].Unusable {
			c.warnings = append(c.warnings, fmt.Sprintf("the attachment of container %s, %s, to %s cannot be read: it stays "+
				"until the runtime removes the container", k.ContainerID, k.IfName, k.Network))
		}
		for _, k := range attached[i].Empty {
			errs = append(errs, c.free(attachment.Freed{
				Network: k.Network, ContainerID: k.ContainerID, IfName: k.IfName, Reason: "a power loss has taken its file",
			}, func() error { return n.remove(ctx, k) }))
		}
		for _, x := range attached[i].Usable {
			if living.Has(x) {
				continue
			}
			errs = append(errs, c.free(attachment.Freed{
				Network: x.Network, ContainerID: x.ContainerID, IfName: x.IfName, Reason: "network namespace is gone",
			}, func() error { return c.dirs.detach(ctx, n, x, "") }))
		}
	}
	return errors.Join(append(errs, c.freeReservations(ctx, networks, living))...)
}

// free frees one thing, unless it is to be said only.
func (c *collector) free(f attachment.Freed, do func() error) error {
	if !c.dryRun {
		if err := do(); err != nil {
			return fmt.Errorf("container %s, %s: %w", f.ContainerID, f.IfName, err)
		}
	}
	c.found = append(c.found, f)
	return nil
}

// freeReservations frees the addresses that host-local holds for nobody: those of leases, and those that a network had
// before leases had them.
func (c *collector) freeReservations(ctx context.Context, networks []cniNetwork, living attachment.Namespaces) error {
	pools := map[[2]string]bool{} // directory and name
	for _, n := range networks {
		for _, name := range bridge.Pools(n.poolsDir) {
			if name == n.list.Name || strings.HasPrefix(name, attachment.PoolPrefix) {
				pools[[2]string{n.poolsDir, name}] = true
			}
		}
	}
	for pool := range pools {
		// Under the pool's lock there is no address whose attachment is not there yet.
		owners := sync.OnceValues(func() (all []attachment.All, err error) {
			for _, n := range networks {
				a, err := n.attachments()
				if err != nil {
					return nil, err
				}
				all = append(all, a)
			}
			return all, nil
		})
		freed, err := bridge.Free(ctx, pool[0], pool[1], c.dryRun, func(r bridge.Reservation) bool {
			all, err := owners()
			return err == nil && !living.HasAddress(r.Address) &&
				!slices.ContainsFunc(all, func(a attachment.All) bool { return a.Have(r.ContainerID, r.IfName) })
		})
		for _, r := range freed {
			c.found = append(c.found, attachment.Freed{
				Network: pool[1], ContainerID: r.ContainerID, IfName: r.IfName, Address: r.Address.String(),
				Reason: "no attachment and no network namespace has the address",
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}
