package main

import (
	"context"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// status says whether an ADD would work, and no more: code 50 and the reason if not. Whether overlayd runs is not asked, since
// an ADD needs but the subnet.env that it has left, and CNI calls STATUS a failure of ADDs; overlayctl status and systemd say
// it.
//
// Nomad asks before it removes a container too, and removes nothing when it hears of an error. So what hinders an ADD
// is no error as long as the network has a container; ADD itself says it.
func (p *plugin) status(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err == nil {
		err = p.ready(ctx, conf, args.Path)
	}
	if err != nil && attached(ctx, args.StdinData) {
		return nil
	}
	return err
}

// attached says whether the network has a container.
func attached(ctx context.Context, stdin []byte) (found bool) {
	conf, err := parseAttachmentConf(stdin)
	if err != nil {
		return false
	}
	err = attachment.With(ctx, conf.DataDir, attachment.Shared, func(s *attachment.Store) error {
		keys, err := s.List(conf.Name)
		found = len(keys) > 0
		return err
	})
	return found && err == nil
}

// ready says why an ADD would fail.
func (p *plugin) ready(ctx context.Context, conf netConf, path string) error {
	lease, err := attachment.ReadLease(conf.SubnetFile)
	if err != nil {
		return failf(types.ErrPluginNotAvailable, "%v", err)
	}
	rendered, err := conf.render(lease)
	if err != nil {
		return err
	}
	if conf.inProcess(rendered) {
		return nil
	}
	return p.delegate(rendered, invoke.Args{Path: path}).run(ctx, "STATUS")
}
