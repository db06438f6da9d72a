package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// gc removes the network's attachments that the runtime does not list, and lets the delegate do the same. It goes on
// past failures and reports them all; a list that is absent is an empty one, as libcni means it.
func (p *plugin) gc(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	err = attachment.With(ctx, conf.DataDir, attachment.Exclusive, func(s *attachment.Store) error {
		return p.gcAttachments(ctx, s, conf, args)
	})
	if err = errors.Join(err, p.gcDelegate(ctx, conf, args)); err != nil {
		return types.NewError(codeOf(err, types.ErrInternal), "not all could be collected: "+err.Error(), "")
	}
	return nil
}

func (p *plugin) gcAttachments(ctx context.Context, s *attachment.Store, conf netConf, args *skel.CmdArgs) error {
	keys, err := s.List(conf.Name)
	if err != nil {
		return err
	}
	errs := []error{s.Sweep()}
	valid := conf.validAttachments()
	for _, k := range keys {
		if slices.Contains(valid, types.GCAttachment{ContainerID: k.ContainerID, IfName: k.IfName}) {
			continue
		}
		if err := p.collect(ctx, s, k, args); err != nil {
			errs = append(errs, fmt.Errorf("container %s, %s: %w", k.ContainerID, k.IfName, err))
		}
	}
	return errors.Join(errs...)
}

func (p *plugin) collect(ctx context.Context, s *attachment.Store, k attachment.Key, args *skel.CmdArgs) error {
	att, err := p.recall(ctx, s, k, args)
	if err == nil {
		att.Delegate, err = confNow(att, attachmentConf{})
	}
	if err != nil {
		return err
	}
	return p.release(ctx, s, att, p.netnsNow(att, ""), args.Path)
}

func (p *plugin) gcDelegate(ctx context.Context, conf netConf, args *skel.CmdArgs) error {
	lease, err := attachment.ReadLease(conf.SubnetFile)
	if err != nil {
		return err
	}
	rendered, err := conf.render(lease)
	if err != nil {
		return err
	}
	if conf.inProcess(rendered) {
		return nil // what there was to collect were the attachments
	}
	valid := append([]types.GCAttachment{}, conf.validAttachments()...) // of the network, not of all that share its pool
	rendered, err = with(rendered, map[string]any{"name": conf.Name, "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid})
	if err != nil {
		return err
	}
	err = p.delegate(rendered, invoke.Args{Path: args.Path}).run(ctx, "GC")
	if codeOf(err, types.ErrInternal) == types.ErrIncompatibleCNIVersion {
		return nil // a delegate from before CNI 1.1 has no GC
	}
	return err
}
