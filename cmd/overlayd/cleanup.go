package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/enforce"
	"github.com/overlayd/overlayd/backend/extension"
	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/userspace"
	"github.com/overlayd/overlayd/cmd/internal/agent"
	"github.com/overlayd/overlayd/cmd/internal/enforcer"
	"github.com/overlayd/overlayd/cmd/internal/names"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// cleanup leaves the network: peers first stop sending, then the kernel is cleared. The state directory stays, but for the policies that
// were in force, so that the host comes back as who it was. What cannot be done is said, and the rest is done.
func (c *config) cleanup(ctx context.Context, w io.Writer) error {
	var links []kernel.Object // by which the host received
	var errs []error
	present, err := kernel.Links(netns.None())
	errs = append(errs, err)
	in := c.remembered()
	// A host without an identity has no lease, and gets neither now.
	if _, err := agent.ReadState(c.stateDir, agent.MachineID()); !errors.Is(err, fs.ErrNotExist) {
		state, err := agent.OpenState(c.stateDir, agent.MachineID(), c.log)
		if err != nil {
			return err
		}
		defer state.Close()
		for _, name := range append([]string{""}, in...) {
			of := state
			if name != "" {
				if of, err = state.Named(name); err != nil {
					errs = append(errs, err)
					continue
				}
			}
			last := leasecache.Read(of.Dir(), state.HostID, leasecache.Now())
			links = append(links, received(last, backend.Host{Network: name, WireGuard: of.WireGuard, Handover: backend.Handover{Present: present}})...)
			errs = append(errs, c.release(ctx, w, name, state.HostID), c.shutDown(ctx, w, last))
		}
	}
	removed, err := kernel.Cleanup(ctx, kernel.Config{Log: c.log}, links...)
	for _, what := range removed {
		fmt.Fprintln(w, "removed", what)
	}
	errs = append(errs, err)
	found, err := firewall.Remove(ctx, netns.None())
	if found && err == nil {
		fmt.Fprintln(w, "removed firewall rules")
	}
	errs = append(errs, err)
	found, err = enforce.Remove(netns.None(), in...)
	if found && err == nil {
		fmt.Fprintln(w, "removed what policies isolated")
	}
	errs = append(errs, err)
	errs = append(errs, fastpath.Remove(pinDir))
	files := append(userspace.Files(c.runDir), settings.Socket(c.runDir), filepath.Join(c.stateDir, enforcer.MemoryName), c.unloaded())
	for _, name := range append([]string{""}, in...) {
		file := c.subnetFileOf(name)
		files = append(files, file, filepath.Join(filepath.Dir(file), agent.RefusalName), filepath.Join(filepath.Dir(file), names.FileName))
	}
	for _, path := range files {
		switch err := os.Remove(path); {
		case err == nil:
			fmt.Fprintln(w, "removed", path)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// release gives the host's leases back, so that others need not wait for them to expire. Reservations stay.
func (c *config) release(ctx context.Context, w io.Writer, network, hostID string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	client, store, err := c.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	if c.embedded { // the others may need to hear of it
		end, err := c.startEmbedded(ctx)
		if err != nil {
			return err
		}
		defer end()
	}
	if store, err = store.Named(network); err != nil {
		return err
	}
	listing, err := store.Leases(ctx)
	if errors.Is(err, etcdstore.ErrNoNetwork) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the lease stays until it expires: %w", err)
	}
	var errs []error
	for _, r := range listing.Records {
		if r.HostID != hostID || r.LeaseID == 0 {
			continue
		}
		if err := store.DeleteEndpoints(ctx, r.LeaseID); err != nil { // they would stay as long as the lease of etcd
			errs = append(errs, err)
		}
		if err := store.Release(ctx, r); err != nil {
			errs = append(errs, fmt.Errorf("the lease %s stays until it expires: %w", r.Key(), err))
			continue
		}
		fmt.Fprintln(w, "released", r.Key())
	}
	return errors.Join(errs...)
}

// shutDown runs the command by which what others of its network made is undone.
func (c *config) shutDown(ctx context.Context, w io.Writer, last leasecache.View) error {
	n, err := subnet.ParseNetwork(last.Config)
	if err != nil || last.Last == nil || !c.told.Extension {
		return nil // nothing was run
	}
	s := extension.Site{Commands: backend.Commands(n), Own: last.Last.Lease}
	for _, pool := range n.Pools {
		s.Network = append(s.Network, pool.Prefix)
	}
	as, err := c.owner()
	if err != nil {
		return err
	}
	if err = extension.Leave(ctx, s, as); err == nil && s.Shutdown != "" {
		fmt.Fprintln(w, "ran", s.Shutdown)
	}
	return err
}

// owner is who the daemon was, if root does its work now; nil: this process's user.
func (c *config) owner() (*syscall.Credential, error) {
	info, err := os.Stat(c.stateDir)
	if err != nil {
		return nil, err
	}
	owner := info.Sys().(*syscall.Stat_t)
	if os.Geteuid() != 0 || owner.Uid == 0 {
		return nil, nil
	}
	return &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}, nil
}

// received are the links by which a host received, flannel.1 say: its own are known without.
func received(last leasecache.View, host backend.Host) (links []kernel.Object) {
	n, err := subnet.ParseNetwork(last.Config)
	if err != nil || last.Last == nil {
		return nil
	}
	host.MTU, host.Addrs = math.MaxUint16, map[subnet.Family]netip.Addr{}
	for _, e := range last.Last.Endpoints {
		host.Addrs[subnet.FamilyOf(e.Subnet.Addr())] = e.PublicIP
	}
	b, err := backend.New(n.Backend, host)
	if err != nil {
		return nil
	}
	for _, e := range last.Last.Endpoints {
		links = append(links, b.Local(e)...)
	}
	return links
}
