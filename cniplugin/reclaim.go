package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
)

// noAddress says whether an ADD failed because the pool is full, or the address that was asked for is taken. host-local
// has no code for it.
func noAddress(err error) bool {
	return err != nil && strings.Contains(err.Error(), "available in range set")
}

// reclaimer is one look for what dead containers hold.
type reclaimer struct {
	*plugin
	store *attachment.Store
	path  string // CNI_PATH
	freed []attachment.Freed
}

// reclaim frees what containers hold that are dead by proof, and says whether there was anything. No ADD goes on
// meanwhile, so that what has no attachment is not about to get one.
func (p *plugin) reclaim(ctx context.Context, conf netConf, args *skel.CmdArgs) (bool, error) {
	s, err := attachment.Open(ctx, conf.DataDir, attachment.Exclusive)
	if err != nil {
		return false, err
	}
	defer s.Close()
	networks, err := s.Networks()
	if err != nil {
		return false, err
	}
	all, err := s.All(networks...)
	if err != nil {
		return false, err
	}
	living, err := attachment.Living()
	if err != nil {
		return false, err
	}
	r := &reclaimer{plugin: p, store: s, path: args.Path}
	errs := []error{r.empty(ctx, all.Empty, args.StdinData, living), r.attachments(ctx, all.Usable, living)}
	errs = append(errs, r.reservations(ctx, args.StdinData, living))
	if len(r.freed) > 0 {
		errs = append(errs, s.SaveFreed(attachment.FreedReport{At: p.now().UTC(), Freed: r.freed}))
	}
	return len(r.freed) > 0, errors.Join(errs...)
}

// empty frees the attachments of whose files a power loss has left nothing. That their addresses are nowhere is looked at:
// a hand may have emptied the file.
func (r *reclaimer) empty(ctx context.Context, keys []attachment.Key, conf []byte, living attachment.Namespaces) error {
	dir, _ := poolDir(conf)
	for _, k := range keys {
		pools := poolsOf(dir, k.Network)
		held, err := bridge.Held(dir, pools, k.ContainerID, k.IfName)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(held, living.HasAddress) {
			continue
		}
		if err := errors.Join(bridge.Release(ctx, dir, pools, k.ContainerID, k.IfName), r.store.Remove(k)); err != nil {
			return err
		}
		r.note(k, "a power loss has taken its file")
	}
	return nil
}

func (r *reclaimer) note(k attachment.Key, reason string) {
	r.freed = append(r.freed, attachment.Freed{Network: k.Network, ContainerID: k.ContainerID, IfName: k.IfName, Reason: reason})
}

// attachments frees those whose namespace is gone, with what later plugins of the chain have made for them.
func (r *reclaimer) attachments(ctx context.Context, all []attachment.Attachment, living attachment.Namespaces) error {
	var errs []error
	for _, a := range all {
		reason := "the host has been restarted"
		if !a.OfEarlierBoot() {
			if reason = "network namespace is gone"; living.Has(a) {
				continue
			}
			if err := r.undoChain(ctx, a); err != nil {
				errs = append(errs, fmt.Errorf("container %s, %s: %w", a.ContainerID, a.IfName, err))
				continue
			}
		}
		a, err := upgrade(ctx, a)
		if err == nil {
			a.Delegate, err = confNow(a, attachmentConf{})
		}
		if err == nil {
			err = r.release(ctx, r.store, a, "", r.path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s, %s: %w", a.ContainerID, a.IfName, err))
			continue
		}
		r.note(a.Key(), reason)
	}
	return errors.Join(errs...)
}

// undoChain runs the DEL of the plugins beside this one, with the configuration and the result of that ADD, which libcni
// keeps. Without them nobody knows what there is to be undone.
func (r *reclaimer) undoChain(ctx context.Context, a attachment.Attachment) error {
	cni := libcni.NewCNIConfig(filepath.SplitList(r.path), r.exec)
	rt := &libcni.RuntimeConf{ContainerID: a.ContainerID, IfName: a.IfName}
	data, kept, err := cni.GetNetworkListCachedConfig(&libcni.NetworkConfigList{Name: a.Network}, rt)
	if err != nil || kept == nil {
		return errors.Join(fmt.Errorf("its configuration is not in %s: overlayctl cni gc takes today's", libcni.CacheDir), err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return err
	}
	kept.NetNS = ""
	list.Plugins = slices.DeleteFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Type == "overlay" })
	return cni.DelNetworkList(ctx, list, kept)
}

// reservations frees addresses that no attachment has, and no namespace.
func (r *reclaimer) reservations(ctx context.Context, conf []byte, living attachment.Namespaces) error {
	networks, err := r.store.Networks()
	if err != nil {
		return err
	}
	owners, err := r.store.All(networks...)
	dir, ok := poolDir(conf)
	if err != nil || !ok {
		return err
	}
	for _, pool := range bridge.Pools(dir) {
		if !strings.HasPrefix(pool, attachment.PoolPrefix) {
			continue
		}
		freed, err := bridge.Free(ctx, dir, pool, false, func(x bridge.Reservation) bool {
			return !owners.Have(x.ContainerID, x.IfName) && !living.HasAddress(x.Address)
		})
		for _, x := range freed {
			r.freed = append(r.freed, attachment.Freed{
				Network: pool, ContainerID: x.ContainerID, IfName: x.IfName, Address: x.Address.String(),
				Reason: "no attachment and no network namespace has the address",
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}
