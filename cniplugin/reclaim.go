package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/dead"
)

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
	c := dead.Collector{}
	if c.Living, err = attachment.Living(); err != nil {
		return false, err
	}
	errs := []error{c.Attachments(all, func(a attachment.Attachment) error {
		if err := p.undoChain(ctx, a, args.Path); err != nil {
			return err
		}
		return p.collect(ctx, s, a.Key(), args)
	}, s.Remove)}
	if dir, ok := poolDir(args.StdinData); ok {
		errs = append(errs, c.Reservations(ctx, dir, networks, func() (attachment.All, error) { return s.All(networks...) }))
	}
	if len(c.Freed) > 0 {
		errs = append(errs, s.SaveFreed(attachment.FreedReport{At: p.now().UTC(), Freed: c.Freed}))
	}
	return len(c.Freed) > 0, errors.Join(errs...)
}

// undoChain runs the DEL of the plugins beside this one, unless what they had made went with the host.
func (p *plugin) undoChain(ctx context.Context, a attachment.Attachment, path string) error {
	if a.OfEarlierBoot() {
		return nil
	}
	cni := libcni.NewCNIConfig(filepath.SplitList(path), p.exec)
	list, rt, err := dead.Configuration(cni, a)
	if err == nil && list == nil && a.Caller == attachment.Docker {
		return nil // there is one where there are ports
	}
	if err != nil || list == nil {
		return errors.Join(fmt.Errorf("its configuration is not in %s: overlayctl cni gc takes today's", libcni.CacheDir), err)
	}
	rt.NetNS = ""
	list.Plugins = slices.DeleteFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Type == "overlay" })
	return cni.DelNetworkList(ctx, list, rt)
}
