// Package dead finds what containers hold that are gone by proof, and has it freed. It is apart from cniplugin, which does so
// when an ADD finds no address, because overlayctl cni gc does the same.
package dead

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containernetworking/cni/libcni"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
)

// Collector is one look for what dead containers hold.
type Collector struct {
	DryRun bool                  // nothing is freed, only told
	Living attachment.Namespaces // looked for after the attachments were read: what is made in between is in neither
	Freed  []attachment.Freed

	lost attachment.All // whose files are empty
}

// Attachments frees those whose namespace is gone, by detach, and those of whose files a power loss has left nothing, by forget;
// the addresses of these [Collector.Reservations] frees. It goes on past failures and returns them all.
func (c *Collector) Attachments(all attachment.All, detach func(attachment.Attachment) error, forget func(attachment.Key) error) error {
	var errs []error
	c.lost.Unusable = append(c.lost.Unusable, all.Empty...)
	for _, k := range all.Empty {
		errs = append(errs, c.free(k, "a power loss has taken its file", func() error { return forget(k) }))
	}
	for _, a := range all.Usable {
		reason := "the host has been restarted"
		if !a.OfEarlierBoot() {
			if reason = "network namespace is gone"; c.Living.Has(a) {
				continue
			}
		}
		errs = append(errs, c.free(a.Key(), reason, func() error { return detach(a) }))
	}
	return errors.Join(errs...)
}

// free frees one thing, unless it is to be told only.
func (c *Collector) free(k attachment.Key, reason string, do func() error) error {
	if !c.DryRun {
		if err := do(); err != nil {
			return fmt.Errorf("container %s, %s: %w", k.ContainerID, k.IfName, err)
		}
	}
	c.Freed = append(c.Freed, attachment.Freed{Network: k.Network, ContainerID: k.ContainerID, IfName: k.IfName, Reason: reason})
	return nil
}

// Reservations frees the addresses that host-local holds in dir for nobody: neither for one of the owners, which are read under
// the pool's lock, so that there is no address whose attachment is not there yet, nor for a namespace. The pools are those of
// leases, and those that networks had before leases had them.
func (c *Collector) Reservations(ctx context.Context, dir string, networks []string, owners func() (attachment.All, error)) error {
	for _, pool := range bridge.Pools(dir) {
		if !strings.HasPrefix(pool, attachment.PoolPrefix) && !slices.Contains(networks, pool) {
			continue
		}
		read := sync.OnceValues(owners)
		freed, err := bridge.Free(ctx, dir, pool, c.DryRun, func(r bridge.Reservation) bool {
			all, err := read()
			return err == nil && !c.Living.HasAddress(r.Address) && !all.Have(r.ContainerID, r.IfName) &&
				(!r.Young || c.lost.Have(r.ContainerID, r.IfName))
		})
		for _, r := range freed {
			c.Freed = append(c.Freed, attachment.Freed{
				Network: pool, ContainerID: r.ContainerID, IfName: r.IfName, Address: r.Address.String(),
				Reason: "no attachment and no network namespace has the address",
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Configuration returns that of the attachment's ADD, with its result and capabilities, all of which libcni keeps; list is nil
// if it has none. Without it nobody knows what the plugins beside overlay have made.
func Configuration(cni *libcni.CNIConfig, a attachment.Attachment) (list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, err error) {
	rt = &libcni.RuntimeConf{ContainerID: a.ContainerID, IfName: a.IfName}
	data, kept, err := cni.GetNetworkListCachedConfig(&libcni.NetworkConfigList{Name: a.Network}, rt)
	if err != nil || kept == nil {
		return nil, rt, err
	}
	if list, err = libcni.NetworkConfFromBytes(data); err != nil {
		return nil, nil, fmt.Errorf("the configuration of its ADD, in %s: %w", libcni.CacheDir, err)
	}
	return list, kept, nil
}
