package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// youngReservation is the age below which an address that nobody has is not taken for a leak: a plugin may be about to
// give it to a container.
const youngReservation = 10 * time.Minute

// freed is one thing that gc has freed, or would free.
type freed struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	Address     string `json:"address,omitempty"` // of a reservation without an attachment
	Reason      string `json:"reason"`
}

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
			c := &collector{dirs: dirs, dryRun: dryRun, now: a.now(), found: []freed{}}
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
	now      time.Time
	found    []freed
	warnings []string
}

func (c *collector) run(ctx context.Context) error {
	networks, err := c.dirs.everyNetwork(ctx)
	if err != nil {
		return err
	}
	// Attachments are read before namespaces are looked for: what is made in between is in neither list.
	attached := make([]attachments, len(networks))
	for i, n := range networks {
		if attached[i], err = n.attachments(ctx); err != nil {
			return err
		}
	}
	living, err := livingNetns()
	if err != nil {
		return err
	}
	var errs []error
	for i, n := range networks {
		for _, k := range attached[i].unusable {
			c.warnings = append(c.warnings, fmt.Sprintf("the attachment of container %s, %s, to %s cannot be read: it stays "+
				"until the runtime removes the container", k.ContainerID, k.IfName, k.Network))
		}
		errs = append(errs, c.freeAttachments(ctx, n, attached[i].usable, living), c.freeReservations(ctx, n, living))
	}
	return errors.Join(errs...)
}

// freeAttachments detaches the containers whose namespaces are gone.
func (c *collector) freeAttachments(ctx context.Context, n cniNetwork, attached []attachment.Attachment, living namespaces) error {
	var errs []error
	for _, x := range attached {
		if living.has(x) {
			continue
		}
		if !c.dryRun {
			if err := c.dirs.detach(ctx, n, x, ""); err != nil {
				errs = append(errs, fmt.Errorf("container %s, %s: %w", x.ContainerID, x.IfName, err))
				continue
			}
		}
		c.found = append(c.found, freed{
			Network: x.Network, ContainerID: x.ContainerID, IfName: x.IfName, Reason: "network namespace is gone",
		})
	}
	return errors.Join(errs...)
}

// freeReservations frees the addresses of a network that host-local holds for nobody.
func (c *collector) freeReservations(ctx context.Context, n cniNetwork, living namespaces) error {
	dir := filepath.Join(n.poolsDir, n.list.Name)
	if _, err := os.Stat(dir); err != nil {
		return nil // it has never given an address
	}
	pool, err := disk.New(n.list.Name, n.poolsDir)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := pool.Lock(); err != nil {
		return err
	}
	defer pool.Unlock()
	// Under the pool's lock there is no address whose attachment is not there yet.
	owners, err := n.attachments(ctx)
	if err != nil {
		return err
	}
	entries, err := poolEntries(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if owners.have(e.containerID, e.ifName) || living.addresses[e.address] || c.now.Sub(e.made) < youngReservation {
			continue
		}
		if !c.dryRun {
			if err := os.Remove(filepath.Join(dir, e.name)); err != nil {
				return err
			}
		}
		c.found = append(c.found, freed{
			Network: n.list.Name, ContainerID: e.containerID, IfName: e.ifName, Address: e.address.String(),
			Reason: "no attachment and no network namespace has the address",
		})
	}
	return nil
}

// poolEntry is a file of host-local.
type poolEntry struct {
	name                string
	address             netip.Addr
	containerID, ifName string
	made                time.Time
}

func poolEntries(dir string) ([]poolEntry, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []poolEntry
	for _, e := range entries {
		address, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // the lock, or which address was given last
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		id, ifName, _ := strings.Cut(strings.TrimSpace(string(data)), disk.LineBreak)
		found = append(found, poolEntry{e.Name(), address, id, ifName, info.ModTime()})
	}
	return found, nil
}
